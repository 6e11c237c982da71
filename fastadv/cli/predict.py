"""`fastadv predict`."""

from __future__ import annotations

import dataclasses
import json
from typing import TYPE_CHECKING

from jsonargparse import ArgumentParser, Namespace

from fastadv.cli.class_shares import MATCHED, add_match_shares, by_language, counter
from fastadv.cli.messages import hush
from fastadv.cli.options import (
    Reading,
    add_chunk_size,
    add_input_output,
    add_model,
    add_options_file,
    add_quiet,
    add_reading,
    each,
    is_read_once,
    model_of,
)
from fastadv.cli.output import text_output

if TYPE_CHECKING:
    from fastadv.tasks.task import Prediction

SUMMARY = "label texts"
DESCRIPTION = (
    "Label texts with a finetuned model. Text in: a text a line, or any labelled file, whose "
    "labels are dropped. JSON lines out, in the same order: text, label and the probability of "
    "every label; for named entities words, tags, and each entity with its words and characters "
    "(of the text printed here, in which words stand with one blank between them). Memory does "
    "not grow with the input."
)


def add_options(parser: ArgumentParser) -> None:
    add_options_file(parser)
    add_model(parser, finetuned=True)
    add_input_output(parser, "- is standard output")
    parser.add_argument(
        "--batch_size",
        type=int | None,
        default=None,
        help="texts in a batch, more if short; by default as in the evaluations of training",
    )
    parser.add_argument(
        "--language",
        type=str | None,
        default=None,
        help="use the constants by which predictions in this language were matched in training "
        "(--match_shares there)",
    )
    add_match_shares(parser, "on the whole input, a file that is read twice")
    parser.add_argument(
        "--dev",
        type=str | None,
        default=None,
        help="labelled English that was not trained on, for --match_shares estimate",
    )
    add_chunk_size(parser)
    add_reading(parser)
    add_quiet(parser)


def run(options: Namespace) -> None:
    reading = Reading(options, ["dev"])
    data = reading.file("input", options.input)
    if each(options.match_shares) and options.language is not None:
        raise ValueError("found --language and --match_shares, expected one of them")
    if each(options.match_shares) and is_read_once(options.input):
        raise ValueError(
            "--match_shares reads the input twice, expected a file, or --language for constants "
            "that were kept with the model"
        )
    hush(options.quiet)
    from fastadv.data.chunks import chunks
    from fastadv.finetuner import AdversarialFinetuner
    from fastadv.tasks.class_shares import ClassShares

    tuner = AdversarialFinetuner.from_pretrained(model_of(options))
    if options.batch_size is not None:
        tuner.config = dataclasses.replace(tuner.config, eval_batch_size=options.batch_size)
    language = options.language
    if each(options.match_shares):
        language = "input"
        dev = None if options.dev is None else reading.file("dev", options.dev)
        known = ClassShares(tuner.preparation.task, tuner.labels, tuner.class_counts)
        given = [f"input={value}" for value in each(options.match_shares)]
        shares = by_language(given, "--match_shares", MATCHED, counter(known, reading.file))
        tuner.match({language: data}, shares, dev)
    lines = map(_line, tuner.iter_predict(data, options.chunk_size, language))
    with text_output(options.output) as file:
        for chunk in chunks(lines, options.chunk_size):
            file.writelines(chunk)
            file.flush()


def _line(prediction: Prediction) -> str:
    return json.dumps(prediction.as_json(), ensure_ascii=False, allow_nan=False) + "\n"
