"""`fastadv align`."""

from __future__ import annotations

import json

from jsonargparse import ArgumentParser, Namespace

from fastadv.cli.embed import add_embedding, embedder_of
from fastadv.cli.messages import hush
from fastadv.cli.options import (
    Reading,
    add_json,
    add_model,
    add_options_file,
    add_quiet,
    add_reading,
)

SUMMARY = "measure how close translations lie"
DESCRIPTION = (
    "Embed texts and their translations and measure how close they lie: the median cosine of the "
    "pairs (paper, 3.4 and Table 3), and in both directions the share of texts whose nearest "
    "neighbour is their own translation. The files are line-aligned; a pair with a blank line is "
    "left out."
)


def add_options(parser: ArgumentParser) -> None:
    add_options_file(parser)
    add_model(parser, finetuned=False)
    parser.add_argument("--source", type=str, required=True, help="texts, such as English ones")
    parser.add_argument(
        "--target", type=str, required=True, help="their translations, line by line"
    )
    add_json(parser)
    add_embedding(parser)
    add_reading(parser, "source or target")
    add_quiet(parser)


def run(options: Namespace) -> None:
    reading = Reading(options, ["source", "target"])
    from fastadv.data import read_pairs

    sources, targets = read_pairs(
        reading.file("source", options.source), reading.file("target", options.target)
    )
    hush(options.quiet)
    from fastadv.tasks.metrics import median_cosine, retrieval_accuracy

    embedder = embedder_of(options)
    source, target = embedder.embed(sources), embedder.embed(targets)
    facts = {
        "pairs": len(sources),
        "median_cosine": median_cosine(source, target),
        "source_to_target": retrieval_accuracy(source, target),
        "target_to_source": retrieval_accuracy(target, source),
    }
    if options.json:
        print(json.dumps(facts))
        return
    names = ("pairs", "median cosine", "source finds target", "target finds source")
    for name, value in zip(names, facts.values(), strict=True):
        print(f"{name:<21}{value if isinstance(value, int) else f'{value:.4f}'}")
