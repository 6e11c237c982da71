"""`fastadv train`."""

from __future__ import annotations

import dataclasses
import shlex
import sys
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from jsonargparse import ArgumentParser, Namespace

from fastadv.cli.class_shares import COUNTED, MATCHED, add_match_shares, by_language, counter
from fastadv.cli.messages import hush, one_line
from fastadv.cli.options import (
    Reading,
    add_options_file,
    add_quiet,
    add_reading,
    add_recipe,
    add_repeated,
    each,
    is_read_once,
    named,
    settings_of,
)
from fastadv.cli.run_folder import BASELINE, has_begun, has_checkpoint, recorded, refuse_other_run
from fastadv.config import FinetuneConfig, TaskName

if TYPE_CHECKING:
    from fastadv.records.history import History

SUMMARY = "finetune a model"
DESCRIPTION = (
    "Finetune on labelled English and unlabelled text of other languages (Algorithm 1 of the "
    "paper: Keung, Lu and Bhardwaj, EMNLP 2019), and print how well each test file is labelled, "
    "with the weights chosen on English dev (or by --config.selection) and with the last ones."
)
Tracker = Literal["tensorboard", "wandb", "trackio"]
TRACKERS: tuple[Tracker, ...] = ("tensorboard", "wandb", "trackio")


def add_options(parser: ArgumentParser) -> None:
    add_options_file(parser)
    parser.add_argument(
        "--model",
        type=str,
        required=True,
        help="what to start from: hub id, folder, fastadv-mini or e5-small",
    )
    parser.add_argument(
        "--task",
        type=TaskName,
        default="classification",
        help="documents with one label each (paper, 3.2), or named entities (paper, 3.3)",
    )
    parser.add_argument("--train", type=str, required=True, help="labelled English file")
    add_repeated(
        parser,
        "--unlabeled",
        "LANG=FILE",
        "text of another language, labels in it are dropped; once for each language; with "
        "--config.adversarial false only needed for --config.selection to look at",
    )
    parser.add_argument(
        "--dev",
        type=str | None,
        default=None,
        help="labelled English file that chooses the step whose weights become best/ (paper, "
        "3.1), unless --config.selection says otherwise",
    )
    add_repeated(
        parser,
        "--class_shares",
        "[LANG=]SHARES",
        "draw the English side of the adversary's batches by a language's shares of the classes: "
        "estimate (from predictions), ignore (paper), or a labelled FILE whose classes are "
        "counted, 50 texts are enough; once for all languages, or with LANG= for each",
    )
    add_match_shares(parser, "in every target language too, and keep them with the model", COUNTED)
    add_repeated(
        parser,
        "--test",
        "NAME=FILE",
        "labelled file scored at every evaluation, chooses nothing; once for each",
    )
    parser.add_argument(
        "--output",
        type=str,
        required=True,
        help="folder of the run: best/, last/, mean/ (--config.mean_weights), metrics.jsonl, "
        "curves.png, run.yaml (all options) "
        "and the checkpoints",
    )
    parser.add_argument(
        "--resume", action="store_true", help="resume the run in --output where it stopped"
    )
    parser.add_argument(
        "--baseline",
        action="store_true",
        help="also run the twin without the adversary (the paper's 'BERT En-labels' rows) on the "
        "same draws, into OUTPUT/baseline, and print the difference",
    )
    add_repeated(
        parser,
        "--tracker",
        f"{{{','.join(TRACKERS)}}}",
        "also send what goes to metrics.jsonl there; may be given again",
    )
    add_reading(parser, "train, dev, or the name of an --unlabeled or --test file")
    add_quiet(parser)
    add_recipe(parser)
    parser.add_class_arguments(
        FinetuneConfig, "config", help="Settings; 'paper' and a section is where a default is from"
    )


def run(options: Namespace) -> None:
    config = settings_of(options)
    if options.baseline and not config.adversarial:
        raise ValueError(
            "found --baseline with --config.adversarial false, expected an adversarial run to "
            "compare with"
        )
    trackers = _trackers(options)
    output = Path(options.output)
    refuse_other_run(output, options.resume, options.baseline)
    hush(options.quiet)
    data, labels = data_and_labels(options)
    config = _with_shares(config, options, data["labeled"], labels)
    variants = {"adversarial" if config.adversarial else "baseline": (output, config)}
    if options.baseline:
        twin = dataclasses.replace(config, adversarial=False)
        variants["baseline"] = (output / BASELINE, twin)
    histories: dict[str, History] = {}
    with recorded(output, options):
        for name, (folder, settings) in variants.items():
            if options.baseline and not options.quiet:
                print(f"{name}: {folder}", file=sys.stderr, flush=True)
            histories[name] = _fit(
                options, settings, labels, {**data, "trackers": trackers}, folder
            )
    _tell(options, histories, output)


def _with_shares(
    config: FinetuneConfig, options: Namespace, train: Any, labels: Sequence[str]
) -> FinetuneConfig:
    """The settings with `--class_shares` and `--match_shares`.

    Raises:
        ValueError: The options are malformed, or a configuration says the same.
    """
    words = {"class_shares": ("ignore", "estimate"), "match_shares": MATCHED}
    given = {name: options[name] for name in words if each(options[name])}
    if not given:
        return config
    from fastadv.tasks.class_shares import ClassShares
    from fastadv.tasks.registry import task_of

    task = task_of(options.task)
    known = ClassShares(task, labels, task.counts(task.labeled(train)))
    reading = Reading(options, ["train", "dev", *named(options.unlabeled, "--unlabeled")])
    changes, count = {}, counter(known, reading.file)
    for name, value in given.items():
        if getattr(config, name) != getattr(FinetuneConfig(), name):
            raise ValueError(f"found --{name} and --config.{name}, expected one of them")
        changes[name] = by_language(value, f"--{name}", words[name], count)
    return dataclasses.replace(config, **changes)


def how_to_resume(stop: BaseException, options: Namespace, given: Sequence[str]) -> str:
    """The line after a signal: what happened and the command that resumes the run."""
    said, output = one_line(stop), Path(options.output)
    if not has_begun(output):
        return f"{said}; nothing was done yet, the same command begins anew"
    resumed = [*given] if "--resume" in given else [*given, "--resume"]
    how = "resume" if has_checkpoint(output) else "there is no checkpoint yet, begin anew"
    return f"{said}; {how} with: {shlex.join(['fastadv', *resumed])}"


def data_and_labels(options: Namespace) -> tuple[dict[str, Any], tuple[str, ...]]:
    """The arguments of `fit` that are data, and the labels of the training file.

    The command need not have the option `test`.
    """
    from fastadv.tasks.registry import task_of

    task = task_of(options.task)
    unlabeled = named(options.unlabeled, "--unlabeled")
    test = named(options.get("test"), "--test")
    reading = Reading(options, ["train", "dev", *unlabeled, *test])

    def labelled(name: str, path: str) -> Any:
        data = reading.file(name, path)
        return task.labeled(data) if is_read_once(path) else data

    def plain(name: str, path: str) -> Any:
        data = reading.file(name, path)
        return list(task.texts(data)) if is_read_once(path) else data

    train = labelled("train", options.train)
    data = {
        "labeled": train,
        "unlabeled": {name: plain(name, path) for name, path in unlabeled.items()},
        "dev": labelled("dev", options.dev) if options.dev else None,
        "test": {name: labelled(name, path) for name, path in test.items()},
    }
    return data, task.labels_of(train)


def _fit(
    options: Namespace,
    config: FinetuneConfig,
    labels: Sequence[str],
    arguments: Mapping[str, Any],
    folder: Path,
) -> History:
    from fastadv.finetuner import AdversarialFinetuner

    tuner = AdversarialFinetuner(options.model, options.task, labels, config)
    return tuner.fit(
        **arguments,
        output_dir=folder,
        resume=options.resume,
        quiet=options.quiet,
    )


def _trackers(options: Namespace) -> list[str]:
    chosen = list(dict.fromkeys(each(options.tracker)))
    for name in chosen:
        if name not in TRACKERS:
            raise ValueError(f"--tracker is {name!r}, expected one of {', '.join(TRACKERS)}")
        if find_spec(name) is None:
            raise ImportError(
                f"--tracker {name} needs the package {name}, found none, expected it to be "
                f"installed: pip install {name}"
            )
    return chosen


def _tell(options: Namespace, histories: Mapping[str, History], output: Path) -> None:
    from fastadv.cli.summary import summary
    from fastadv.records.plots import plot_curves
    from fastadv.run.folder import BEST, LAST

    table = summary(histories, options.task)
    if table:
        print(table)
    try:
        relaxation = options.config.relaxation
        plot_curves(output / "curves.png", histories, options.task, relaxation)
        print(f"curves {output / 'curves.png'}")
    except ImportError as error:
        print(f"no curves.png: {one_line(error)}", file=sys.stderr)
    first = next(iter(histories.values()))
    print(f"model {output / (BEST if first.best_step is not None else LAST)}")
