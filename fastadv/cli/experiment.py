"""`fastadv experiment`."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jsonargparse import ArgumentParser, Namespace

from fastadv.cli.messages import hush, one_line
from fastadv.cli.options import add_quiet, add_recipe, add_repeated, each, named, settings_of
from fastadv.config import FinetuneConfig

if TYPE_CHECKING:
    from fastadv.experiments.plan import ExperimentPlan

SUMMARY = "every language, with and without the adversary, over several seeds"
DESCRIPTION = (
    "Do the paper's experiments (Keung, Lu and Bhardwaj, EMNLP 2019: Tables 1 to 3 and Figure 2): "
    "for every target language, over several seeds, runs with and without the adversary. Leaves "
    "results.jsonl, tables as Markdown and CSV, figures, and one page report.html, which also says "
    "what each criterion would have got that chooses a step without target labels. The same "
    "command resumes where it was stopped; finished runs are kept."
)
CORPORA = ("mldoc", "conll")


def add_options(parser: ArgumentParser) -> None:
    parser.add_argument(
        "what",
        type=str,
        metavar="mldoc|conll|FILE.yaml",
        help="the paper's documents (Table 1) or named entities (Table 2), or an experiment "
        "written down (docs/experiments.md)",
    )
    parser.add_argument(
        "--data",
        type=str | None,
        default=None,
        help="folder of the corpus's own files, such as english.train.1000 and german.test, or "
        "eng.train and deu.testb; for FILE.yaml what its paths begin at (its own folder)",
    )
    parser.add_argument("--output", type=str, required=True, help="folder of the experiment")
    parser.add_argument(
        "--model",
        type=str | None,
        default=None,
        help="what to start from, instead of multilingual BERT or what FILE.yaml says",
    )
    add_repeated(
        parser, "--language", "LANG", "only this target; may be given again; by default all"
    )
    add_repeated(parser, "--seed", "N", "only this seed; may be given again; 0 to 3 by default")
    add_repeated(
        parser,
        "--translations",
        "LANG=SOURCE,TARGET",
        "line-aligned English texts and their translations, for Table 3; once for each target",
    )
    parser.add_argument(
        "--jobs",
        type=int,
        default=1,
        help="runs at once, each a process of its own, on GPUs in turn",
    )
    parser.add_argument(
        "--threads",
        type=int | None,
        default=None,
        help="threads of each run on the CPU; by default the cores shared out over the jobs",
    )
    add_quiet(parser)
    add_recipe(parser)
    parser.add_class_arguments(
        FinetuneConfig,
        "config",
        help="Settings, the paper's by default; FILE.yaml has its own, and then none is taken here",
    )


def run(options: Namespace) -> None:
    from fastadv.experiments.experiment import Experiment
    from fastadv.experiments.report import write_report
    from fastadv.recommended import say_recommended

    plan = _plan(options)
    hush(options.quiet)
    experiment = Experiment(Path(options.output), plan)
    # Here, as runs may be processes of their own, which write to a file.
    say_recommended(plan.config, plan.task, plan.model)
    experiment.go(options.jobs, options.quiet)
    _report(experiment, write_report)


def how_to_resume(stop: BaseException, options: Namespace, given: Sequence[str]) -> str:
    """The line after a signal: what happened and the command that resumes the experiment."""
    return f"{one_line(stop)}; resume with: {shlex.join(['fastadv', *given])}"


def _report(experiment: Any, write: Any) -> None:
    try:
        written = write(experiment)
    except ImportError as error:
        print(f"no report.html: {one_line(error)}", file=sys.stderr)
        return
    if not written:
        return
    tables = next(path for path in written if path.suffix == ".md").read_text("utf-8")
    print(tables)
    print(f"report {written[0]}")


def _plan(options: Namespace) -> ExperimentPlan:
    from fastadv.experiments.plan import SEEDS

    languages, seeds = each(options.language), [_seed(text) for text in each(options.seed)]
    if options.what in CORPORA:
        from fastadv.experiments.corpora import MULTILINGUAL_BERT, corpus_plan

        if options.data is None:
            raise ValueError(f"found no --data, expected the folder of {options.what}'s files")
        return corpus_plan(
            options.what,
            Path(options.data),
            settings_of(options),
            options.model or MULTILINGUAL_BERT,
            languages,
            seeds or SEEDS,
            _translations(options),
            options.threads,
        )
    return _written_down(options, languages, seeds)


def _written_down(options: Namespace, languages: list[str], seeds: list[int]) -> ExperimentPlan:
    import dataclasses

    from fastadv.experiments.plan_file import read_plan

    path = Path(options.what)
    if path.suffix not in (".yaml", ".yml"):
        raise ValueError(f"found {options.what!r}, expected mldoc, conll or a FILE.yaml")
    if FinetuneConfig(**options.config.as_dict()) != FinetuneConfig():
        raise ValueError(
            f"found --config beside {path}, expected settings in that file under config"
        )
    if each(options.translations):
        raise ValueError(f"found --translations beside {path}, expected them in that file")
    plan = read_plan(path, None if options.data is None else Path(options.data))
    changes: dict[str, Any] = {}
    if options.model is not None:
        changes["model"] = options.model
    if options.threads is not None:
        changes["threads"] = options.threads
    if options.recipe is not None:
        changes["config"] = dataclasses.replace(plan.config, recipe=options.recipe)
    return dataclasses.replace(plan.narrowed(languages, seeds), **changes)


def _translations(options: Namespace) -> dict[str, Any]:
    from fastadv.data import DataFile

    found = {}
    for language, files in named(options.translations, "--translations").items():
        source, comma, target = files.partition(",")
        if not (source and comma and target):
            raise ValueError(
                f"--translations is {language + '=' + files!r}, expected LANG=SOURCE,TARGET"
            )
        found[language] = DataFile(source), DataFile(target)
    return found


def _seed(text: str) -> int:
    if not text.isdigit():
        raise ValueError(f"--seed is {text!r}, expected a whole number of at least 0")
    return int(text)
