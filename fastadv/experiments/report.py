"""What an experiment leaves for people to read: tables, figures, and one page with all of it."""

from __future__ import annotations

import base64
import html
from collections.abc import Iterable, Mapping, Sequence
from importlib.resources import files
from pathlib import Path

from fastadv.experiments.arm_tables import arm_tables
from fastadv.experiments.experiment import ENVIRONMENT, RESULTS, Experiment
from fastadv.experiments.figures import plot_discriminator, plot_scores
from fastadv.experiments.plan import ExperimentPlan
from fastadv.experiments.results import CONDITIONS, Results
from fastadv.experiments.summary import sentences
from fastadv.experiments.tables import Table, all_tables, has_papers_arms
from fastadv.run.files import write_atomically
from fastadv.selection import MEANINGS

TABLES, REPORT, FIGURES = "tables.md", "report.html", "figures"
SECTIONS = {
    "Scores": ("scores",),
    "What the adversary adds": ("effect",),
    "Which step to keep": ("criteria", "criteria_baseline", "criteria_adversarial"),
    "Translations": ("alignment",),
    "Is the discriminator working?": ("discriminator",),
}
ARM_SECTIONS = {
    "Arms: step chosen on English dev": (
        "arms_english_dev",
        "gains_english_dev",
        "effects_english_dev",
    ),
    "Arms: last step": ("arms_last", "gains_last", "effects_last"),
    "Arms: mean of the weights": (
        "arms_mean_weights",
        "gains_mean_weights",
        "effects_mean_weights",
    ),
    "By language": ("languages",),
    "Class shares": ("shares",),
}
"""Headings of the page, and the names of the tables and kinds of figures under each; the second for
experiments with arms of their own.
"""


def write_report(experiment: Experiment) -> list[Path]:
    """Writes tables.md, one CSV per table, figures/ and report.html from the finished runs.

    Returns:
        The files, report.html first. Nothing where no run is finished.

    Raises:
        ImportError: Matplotlib is not installed; tables were written.
    """
    folder, plan = experiment.folder, experiment.plan
    if not (folder / RESULTS).exists() or not (folder / RESULTS).stat().st_size:
        return []
    results = Results.read(folder / RESULTS)
    own = not has_papers_arms(results)
    tables = arm_tables(results) if own else all_tables(results, plan.paper)
    written = [folder / TABLES]
    write_atomically(written[0], "\n".join(table.markdown() for table in tables.values()))
    for name, table in tables.items():
        written.append(folder / f"{name}.csv")
        write_atomically(written[-1], table.csv())
    figures: dict[str, list[tuple[str, Path]]] = {"scores": [], "discriminator": []}
    for language in results.languages:
        if not any(results.runs(condition, language) for condition in CONDITIONS):
            continue
        for kind, plot in (("scores", plot_scores), ("discriminator", plot_discriminator)):
            path = folder / FIGURES / f"{kind}_{language}.png"
            plot(path, results, language)
            figures[kind].append((f"{language}: {kind} over steps", path))
            written.append(path)
    machines = folder / ENVIRONMENT
    write_atomically(
        folder / REPORT,
        _page(
            plan,
            results,
            tables,
            figures,
            machines.read_text("utf-8") if machines.exists() else "",
        ),
    )
    return [folder / REPORT, *written]


def _facts(plan: ExperimentPlan, results: Results) -> dict[str, str]:
    config = plan.resolved()
    done, planned = len(results.lines), len(plan.runs())
    return {
        "Model": plan.model,
        "Task": plan.task,
        "Languages": f"{plan.source.language} to {', '.join(results.languages)}",
        "Runs": f"{done} of {planned}" if done < planned else f"{done}",
        "Seeds": ", ".join(map(str, plan.seeds)),
        "Steps": f"{config.steps:,}",
        "Batch": f"{config.batch_size} examples"
        if config.tokens_per_batch is None
        else f"{config.tokens_per_batch:,} word pieces",
        "Length": f"{config.max_length} word pieces at most",
        "Learning rates": f"{config.lr_task:g} (task), {config.lr_discriminator:g} "
        f"(discriminator), {config.lr_generator:g} (generator)",
    }


def _page(
    plan: ExperimentPlan,
    results: Results,
    tables: Mapping[str, Table],
    figures: Mapping[str, Sequence[tuple[str, Path]]],
    machines: str,
) -> str:
    """A page that needs no other file and no network."""
    style = files("fastadv.experiments").joinpath("report.css").read_text("utf-8")
    title = html.escape(plan.name)
    parts = [f"<h1>{title}</h1>{_terms(_facts(plan, results))}"]
    parts.append(_section("In short", _list(map(html.escape, sentences(results)))))
    sections = SECTIONS if has_papers_arms(results) else ARM_SECTIONS
    for heading, names in sections.items():
        found = "".join(_table(tables[name]) for name in names if name in tables)
        pictures = "".join(_figure(*figure) for name in names for figure in figures.get(name, ()))
        if pictures:
            found += f'<div class="figures">{pictures}</div>'
        if "criteria" in names:
            found += f"<details><summary>What they look for</summary>{_terms(MEANINGS)}</details>"
        if found:
            parts.append(_section(heading, found))
    warnings = [
        f"<b>{html.escape(line['run'])}</b>: {html.escape(said)}"
        for line in results.lines
        for said in line["warnings"]
    ]
    if warnings:
        parts.append(_section("Warnings while training", _list(warnings)))
    if machines:
        kept = f"<details><summary>Made on</summary><pre>{html.escape(machines)}</pre></details>"
        parts.append(_section("Machines and libraries", kept))
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{title}</title><style>\n{style}</style></head>\n<body><main>\n"
        + "\n".join(parts)
        + "\n</main></body></html>\n"
    )


def _section(heading: str, content: str) -> str:
    return f"<section><h2>{html.escape(heading)}</h2>{content}</section>"


def _list(items: Iterable[str]) -> str:
    return "<ul>" + "".join(f"<li>{item}</li>" for item in items) + "</ul>"


def _terms(terms: Mapping[str, str]) -> str:
    pairs = "".join(f"<dt>{_breakable(k)}</dt><dd>{html.escape(v)}</dd>" for k, v in terms.items())
    return f"<dl>{pairs}</dl>"


def _table(table: Table) -> str:
    head = "".join(f'<th scope="col">{html.escape(cell)}</th>' for cell in table.header)
    rows = "".join(
        f'<tr><th scope="row">{_breakable(first)}</th>'
        + "".join(f"<td>{html.escape(cell)}</td>" for cell in cells)
        + "</tr>"
        for first, *cells in table.rows
    )
    # Wide tables scroll in their own box, by touch and by keyboard; the page itself never does.
    label = html.escape(table.title, quote=True)
    return (
        f'<p>{html.escape(table.title)}</p><div class="scroll" tabindex="0" '
        f'role="region" aria-label="{label}"><table><thead><tr>{head}</tr></thead>'
        f"<tbody>{rows}</tbody></table></div>"
    )


def _breakable(name: str) -> str:
    """Allows a line break after an underscore or a plus."""
    return html.escape(name).replace("_", "_<wbr>").replace("+", "+<wbr>")


def _figure(caption: str, path: Path) -> str:
    data = base64.b64encode(path.read_bytes()).decode("ascii")
    said = html.escape(caption, quote=True)
    return (
        f'<figure><img alt="{said}" src="data:image/png;base64,{data}">'
        f"<figcaption>{said}</figcaption></figure>"
    )
