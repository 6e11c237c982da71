"""The command `fastadv`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentParser, Namespace
from transformers.utils import logging as transformers_logging

from fastadv import demo, environment
from fastadv.config import FinetuneConfig, Task
from fastadv.evaluate import SCORE
from fastadv.finetuner import AdversarialFinetuner
from fastadv.fit import BEST, LAST, History
from fastadv.labels import labels_of
from fastadv.plots import plot_curves
from fastadv.table import table


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit status: 0 done, 1 refused, 2 misused, 130 stopped."""
    parser = _parser()
    chosen = parser.parse_args(arguments)
    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()
    commands = {"train": _train, "evaluate": _evaluate, "demo": _demo, "env": _env}
    try:
        commands[chosen.subcommand](chosen[chosen.subcommand])
    except (ValueError, OSError, ImportError, RuntimeError, FloatingPointError) as error:
        print(f"fastadv {chosen.subcommand}: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt as stop:
        print(f"fastadv {chosen.subcommand}: {stop or 'stopped'}", file=sys.stderr)
        return 130
    return 0


def _parser() -> ArgumentParser:
    parser = ArgumentParser(
        prog="fastadv", description="Language-adversarial finetuning of multilingual encoders."
    )
    commands = parser.add_subcommands(required=True)

    train = ArgumentParser(description="Finetune on labelled English and unlabelled other text.")
    train.add_argument("--model", type=str, required=True, help="hub id, folder, or e5-small")
    train.add_argument("--task", type=Task, default="classification", help="the task")
    train.add_argument("--train", type=str, required=True, help="labelled English file")
    train.add_argument(
        "--unlabeled",
        type=str,
        action="append",
        default=[],
        metavar="LANG=FILE",
        help="text of another language, labels dropped; once for each language",
    )
    train.add_argument("--dev", type=str | None, default=None, help="labelled English file")
    train.add_argument(
        "--test",
        type=str,
        action="append",
        default=[],
        metavar="NAME=FILE",
        help="labelled file scored at every evaluation; may be given again",
    )
    train.add_argument("--output", type=str, required=True, help="folder of the run")
    train.add_argument("--resume", action="store_true", help="go on from the run in --output")
    train.add_argument("--quiet", action="store_true", help="no progress bar")
    train.add_class_arguments(FinetuneConfig, "config")
    commands.add_subcommand("train", train, help="finetune a model")

    evaluate = ArgumentParser(description="Score a finetuned model on labelled files.")
    evaluate.add_argument("--model", type=str, required=True, help="folder that train wrote")
    evaluate.add_argument(
        "--test", type=str, action="append", default=[], metavar="NAME=FILE", help="labelled file"
    )
    commands.add_subcommand("evaluate", evaluate, help="score a finetuned model")

    sample = ArgumentParser(
        description="Finetune on the sample corpus, with and without the adversary."
    )
    sample.add_function_arguments(demo.run)
    commands.add_subcommand("demo", sample, help="see it work on the sample corpus")

    env = ArgumentParser(description="Versions, hardware, and which backends can run.")
    commands.add_subcommand("env", env, help="show versions, hardware and backends")
    return parser


def _train(options: Namespace) -> None:
    labels = labels_of(options.train, options.task)
    config = FinetuneConfig(**options.config.as_dict())
    tuner = AdversarialFinetuner(options.model, options.task, labels, config)
    output = Path(options.output)
    history = tuner.fit(
        options.train,
        _named(options.unlabeled, "--unlabeled"),
        dev=options.dev,
        test=_named(options.test, "--test"),
        output_dir=output,
        resume=options.resume,
        quiet=options.quiet,
    )
    if options.test:
        print(summary(history, options.task))
        _plot(output, history, config, options.task)
    print(f"model {output / (BEST if history.best_step is not None else LAST)}")


def _plot(output: Path, history: History, config: FinetuneConfig, task: Task) -> None:
    try:
        name = "adversarial" if config.adversarial else "baseline"
        plot_curves(output / "curves.png", {name: history}, task)
    except ImportError as error:
        print(f"no curves.png: {error}", file=sys.stderr)


def _evaluate(options: Namespace) -> None:
    if not options.test:
        raise ValueError("found no --test, expected at least one NAME=FILE")
    tuner = AdversarialFinetuner.from_pretrained(options.model)
    scores = tuner.evaluate(_named(options.test, "--test"))
    metrics = list(next(iter(scores.values())))
    rows = [[name, *(f"{values[m]:.4f}" for m in metrics)] for name, values in scores.items()]
    print(table(["", *metrics], rows))


def _demo(options: Namespace) -> None:
    print(demo.run(**options.as_dict()))


def _env(options: Namespace) -> None:
    print(environment.report())


def summary(history: History, task: Task) -> str:
    """A row for each test set: its score at the step chosen on English dev, and at the last."""
    evaluations = history.evaluations()
    last = evaluations[-1]
    best = next((e for e in evaluations if e["step"] == history.best_step), last)
    metric = SCORE[task]
    rows = [
        [name, f"{best['test'][name][metric]:.4f}", f"{scores[metric]:.4f}"]
        for name, scores in last["test"].items()
    ]
    return table(["", f"{metric}, step {best['step']}", f"step {last['step']} (last)"], rows)


def _named(pairs: list[str], option: str) -> dict[str, Any]:
    named: dict[str, Any] = {}
    for pair in pairs:
        name, equals, path = pair.partition("=")
        if not (name and equals and path):
            raise ValueError(f"{option} is {pair!r}, expected NAME=FILE")
        if name in named:
            raise ValueError(f"{option} names {name!r} twice, expected different names")
        named[name] = path
    return named
