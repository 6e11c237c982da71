"""What an experiment leaves for people to read: tables, figures, and one page with all of it."""

from __future__ import annotations

import base64
import html
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path

from fastadv.atomic_file import write_atomically
from fastadv.experiments.experiment import RESULTS, Experiment
from fastadv.experiments.figures import plot_discriminator, plot_scores
from fastadv.experiments.results import CONDITIONS, Results
from fastadv.experiments.tables import Table, all_tables

TABLES, REPORT, FIGURES = "tables.md", "report.html", "figures"


def write_report(experiment: Experiment) -> list[Path]:
    """Writes tables.md, a CSV a table, figures/ and report.html from the runs finished so far.

    Returns:
        The files, report.html first. Nothing where no run is finished.

    Raises:
        ImportError: matplotlib is not installed; tables were written.
    """
    folder, plan = experiment.folder, experiment.plan
    if not (folder / RESULTS).exists() or not (folder / RESULTS).stat().st_size:
        return []
    results = Results.read(folder / RESULTS)
    tables = all_tables(results, plan.paper)
    written = [folder / TABLES]
    write_atomically(written[0], "\n".join(table.markdown() for table in tables.values()))
    for name, table in tables.items():
        written.append(folder / f"{name}.csv")
        write_atomically(written[-1], table.csv())
    figures: list[tuple[str, Path]] = []
    for language in results.languages:
        if not any(results.runs(condition, language) for condition in CONDITIONS):
            continue
        for kind, plot in (("scores", plot_scores), ("discriminator", plot_discriminator)):
            path = folder / FIGURES / f"{kind}_{language}.png"
            plot(path, results, language)
            figures.append((f"{language}: {kind} over steps", path))
    done, planned = len(results.lines), len(plan.runs())
    facts = [
        ("Model", plan.model),
        ("Task", plan.task),
        ("Languages", f"{plan.source.language} to {', '.join(results.languages)}"),
        ("Runs", f"{done} of {planned}" if done < planned else f"{done}"),
        ("Seeds", ", ".join(map(str, plan.seeds))),
        ("Steps", f"{plan.config.steps:,}"),
    ]
    warnings = [(line["run"], said) for line in results.lines for said in line["warnings"]]
    page = _page(plan.name, facts, list(tables.values()), figures, warnings)
    write_atomically(folder / REPORT, page)
    return [folder / REPORT, *written, *(path for _, path in figures)]


def _page(
    name: str,
    facts: Sequence[tuple[str, str]],
    tables: Sequence[Table],
    figures: Sequence[tuple[str, Path]],
    warnings: Sequence[tuple[str, str]],
) -> str:
    """A page that needs no other file and no network."""
    style = files("fastadv.experiments").joinpath("report.css").read_text("utf-8")
    title = html.escape(name)
    terms = "".join(f"<dt>{html.escape(k)}</dt><dd>{html.escape(v)}</dd>" for k, v in facts)
    parts = [f"<h1>{title}</h1><dl>{terms}</dl>", *map(_table, tables)]
    pictures = "".join(_figure(caption, path) for caption, path in figures)
    parts.append(f'<section><h2>Over steps</h2><div class="figures">{pictures}</div></section>')
    if warnings:
        said = "".join(
            f"<li><b>{html.escape(run)}</b>: {html.escape(text)}</li>" for run, text in warnings
        )
        parts.append(f"<section><h2>Warnings while training</h2><ul>{said}</ul></section>")
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{title}</title><style>\n{style}</style></head>\n<body><main>\n"
        + "\n".join(parts)
        + "\n</main></body></html>\n"
    )


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
        f'<section><p>{html.escape(table.title)}</p><div class="scroll" tabindex="0" '
        f'role="region" aria-label="{label}"><table><thead><tr>{head}</tr></thead>'
        f"<tbody>{rows}</tbody></table></div></section>"
    )


def _breakable(name: str) -> str:
    """May go on in the next line after an underscore or a plus."""
    return html.escape(name).replace("_", "_<wbr>").replace("+", "+<wbr>")


def _figure(caption: str, path: Path) -> str:
    data = base64.b64encode(path.read_bytes()).decode("ascii")
    said = html.escape(caption, quote=True)
    return (
        f'<figure><img alt="{said}" src="data:image/png;base64,{data}">'
        f"<figcaption>{said}</figcaption></figure>"
    )
