"""`fastadv export`."""

from __future__ import annotations

from pathlib import Path

from jsonargparse import ArgumentParser, Namespace

from fastadv.cli.messages import hush
from fastadv.cli.options import add_model, add_options_file, add_quiet, model_of

SUMMARY = "write a model for one language"
DESCRIPTION = (
    "Write a finetuned model whose predictions were matched in a language (--match_shares of "
    "train) as a model for that language: the constants go into the bias of its head, so that "
    "every tool that loads the folder has matched predictions."
)


def add_options(parser: ArgumentParser) -> None:
    add_options_file(parser)
    add_model(parser, finetuned=True)
    parser.add_argument(
        "--language", type=str, required=True, help="language in which predictions were matched"
    )
    parser.add_argument("--output", type=str, required=True, help="new folder for the model")
    add_quiet(parser)


def run(options: Namespace) -> None:
    output = Path(options.output)
    if output.exists():
        raise ValueError(f"{output}: found something there, expected a new folder")
    hush(options.quiet)
    from fastadv.finetuner import AdversarialFinetuner
    from fastadv.run.files import replace_folder

    tuner = AdversarialFinetuner.from_pretrained(model_of(options))
    replace_folder(output, lambda folder: tuner.save_pretrained(folder, options.language))
    if not options.quiet:
        print(f"model {output}")
