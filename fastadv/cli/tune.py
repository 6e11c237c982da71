"""`fastadv tune`."""

from __future__ import annotations

import dataclasses
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from jsonargparse import ArgumentParser, Namespace

from fastadv.cli.messages import hush, one_line
from fastadv.cli.options import (
    add_options_file,
    add_quiet,
    add_reading,
    add_recipe,
    add_repeated,
    settings_of,
)
from fastadv.cli.train import data_and_labels
from fastadv.config import FinetuneConfig, TaskName

if TYPE_CHECKING:
    from fastadv.experiments.tuning import Search, Trial

SUMMARY = "search for learning rates on English dev"
DESCRIPTION = (
    "Search for the learning rates of task, discriminator and generator that do best on labelled "
    "English dev, as the paper does (Keung, Lu and Bhardwaj, EMNLP 2019, section 3.1). Labels of "
    "other languages are neither taken nor looked at. Leaves the trials and best.yaml, which "
    "fastadv train --options takes."
)
BEST = "best.yaml"
_SHOWN = 10


def add_options(parser: ArgumentParser) -> None:
    add_options_file(parser)
    parser.add_argument(
        "--model",
        type=str,
        required=True,
        help="what to start from: hub id, folder, fastadv-mini or e5-small",
    )
    parser.add_argument(
        "--task", type=TaskName, default="classification", help="documents, or named entities"
    )
    parser.add_argument("--train", type=str, required=True, help="labelled English file")
    parser.add_argument(
        "--dev", type=str, required=True, help="labelled English file that rates are chosen on"
    )
    add_repeated(
        parser,
        "--unlabeled",
        "LANG=FILE",
        "text of another language, labels in it are dropped; once for each language; not "
        "needed with --config.adversarial false, which searches the task's rate alone",
    )
    parser.add_argument("--output", type=str, required=True, help="folder of the search")
    parser.add_argument(
        "--resume", action="store_true", help="resume the search in --output where it stopped"
    )
    parser.add_argument(
        "--trials", type=int, default=16, help="trials in all, those before a stop counted"
    )
    parser.add_argument(
        "--span",
        type=float,
        default=10.0,
        help="rates are searched from 1/span to span times the configured ones, which are those "
        "that fit the encoder unless others are given (--recipe)",
    )
    parser.add_argument(
        "--startup", type=int, default=6, help="trials at random before the search learns"
    )
    add_reading(parser, "train, dev, or the name of an --unlabeled file")
    add_quiet(parser)
    add_recipe(parser)
    parser.add_class_arguments(
        FinetuneConfig, "config", help="Settings; the three rates are where the search begins"
    )


def run(options: Namespace) -> None:
    from fastadv.experiments.tuning import RATES, Search, Trial, best_of, propose
    from fastadv.recommended import resolved_for, say_recommended

    config = settings_of(options)
    if options.trials < 1:
        raise ValueError(f"--trials is {options.trials}, expected at least 1")
    if config.selection != "english_dev":
        raise ValueError(
            f"--config.selection is {config.selection!r}, expected 'english_dev': trials are "
            "compared by their scores on dev"
        )
    resolved = resolved_for(config, options.task, options.model)
    searched = RATES if config.adversarial else RATES[:1]
    centre = {name: float(getattr(resolved, name)) for name in searched}
    # Wrong options are refused here, before anything is written.
    propose([], centre, options.span, config.seed, options.startup)
    hush(options.quiet)
    data, labels = data_and_labels(options)
    # Here, as every trial has rates of its own.
    say_recommended(config, options.task, options.model)
    search = Search(Path(options.output), _settings(options), options.resume)
    for number in range(len(search.trials), options.trials):
        rates = propose(search.trials, centre, options.span, config.seed, options.startup)
        score, step, why = _tried(options, labels, data, _with(config, rates))
        search.add(Trial(number, rates, score, step))
        if not options.quiet:
            print(_told(search, why), file=sys.stderr, flush=True)
    best = best_of(search.trials)
    if best is None:
        raise FloatingPointError(
            f"{options.output}: in none of {len(search.trials)} trials losses stayed finite, "
            "expected lower rates to begin with"
        )
    _write_best(Path(options.output) / BEST, options, best)
    _tell(search, options)


def how_to_resume(stop: BaseException, options: Namespace, given: Sequence[str]) -> str:
    """The line after a signal: what happened and the command that resumes the search."""
    resumed = [*given] if "--resume" in given else [*given, "--resume"]
    if not (Path(options.output) / "tune.json").exists():
        resumed = [*given]
    return f"{one_line(stop)}; resume with: {shlex.join(['fastadv', *resumed])}"


def _tried(
    options: Namespace, labels: Sequence[str], data: dict[str, Any], config: FinetuneConfig
) -> tuple[float | None, int | None, str]:
    """Best score on dev and its step, or why there is none."""
    from fastadv.finetuner import AdversarialFinetuner

    tuner = AdversarialFinetuner(options.model, options.task, labels, config)
    try:
        history = tuner.fit(**data, quiet=True)
    except FloatingPointError as error:
        return None, None, one_line(error)
    return history.best_score, history.best_step, ""


def _with(config: FinetuneConfig, rates: dict[str, float]) -> FinetuneConfig:
    changes: dict[str, Any] = {**rates}
    return dataclasses.replace(config, **changes)


def _settings(options: Namespace) -> dict[str, Any]:
    """What trials depend on."""
    passing = ("output", "resume", "quiet", "trials", "options", "print_config")
    return {name: value for name, value in options.as_dict().items() if name not in passing}


def _told(search: Search, why: str) -> str:
    from fastadv.experiments.tuning import best_of

    trial, best = search.trials[-1], best_of(search.trials)
    rates = "  ".join(f"{name} {rate:.2e}" for name, rate in trial.rates.items())
    score = "no number" if trial.score is None else f"{trial.score:.4f}"
    so_far = "" if best is None or best.score is None else f"  (best {best.score:.4f})"
    return f"trial {trial.number}: {rates}  dev {score}{so_far}" + (f"  {why}" if why else "")


def _write_best(path: Path, options: Namespace, best: Trial) -> None:
    from fastadv.run.files import write_atomically

    kept = ("model", "task", "train", "dev", "unlabeled", "encoding", "format", "columns")
    found = options.as_dict()
    chosen = {name: found[name] for name in kept if found.get(name)}
    chosen["config"] = {**found["config"], **best.rates}
    text = yaml.safe_dump(chosen, sort_keys=False, allow_unicode=True)
    write_atomically(path, f"# From trial {best.number} of fastadv tune.\n{text}")


def _tell(search: Search, options: Namespace) -> None:
    from fastadv.records.text_table import table

    scored = [trial for trial in search.trials if trial.score is not None]
    scored.sort(key=lambda trial: (-(trial.score or 0), trial.number))
    names = list(scored[0].rates)
    rows = [
        [str(t.number), *(f"{t.rates[name]:.3g}" for name in names), f"{t.score:.4f}", str(t.step)]
        for t in scored[:_SHOWN]
    ]
    print(table(["trial", *names, "dev", "step"], rows, left=0))
    best = Path(options.output) / BEST
    print(f"next: {shlex.join(['fastadv', 'train', '--options', str(best), '--output', 'NEW'])}")
