"""`fastadv embed`."""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import tee
from typing import TYPE_CHECKING

from jsonargparse import ArgumentParser, Namespace

from fastadv.cli.messages import hush
from fastadv.cli.options import (
    Reading,
    add_chunk_size,
    add_input_output,
    add_model,
    add_options_file,
    add_quiet,
    add_reading,
    model_of,
)
from fastadv.cli.output import binary_output, text_output

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from fastadv.data import Data, DataFile
    from fastadv.embedder import Embedder

SUMMARY = "embed texts"
DESCRIPTION = (
    "Embed texts: the mean of the encoder's last hidden states over a text's word pieces (paper, "
    "3.1). Text in: a text a line, or any labelled file, whose labels are dropped. Out: a NumPy "
    "array (N, H) of float32, or JSON lines with text and embedding. Memory does not grow with "
    "the input."
)


def add_options(parser: ArgumentParser) -> None:
    add_options_file(parser)
    add_model(parser, finetuned=False)
    add_input_output(
        parser,
        "an array if its name ends in .npy, else JSON lines; - is JSON lines on standard output",
    )
    add_embedding(parser)
    add_chunk_size(parser)
    add_reading(parser)
    add_quiet(parser)


def add_embedding(parser: ArgumentParser) -> None:
    """`--max_length` and `--batch_size`."""
    parser.add_argument(
        "--max_length",
        type=int | None,
        default=None,
        help="longest text in word pieces with special tokens, longer ones are cut; by default "
        "what the model was finetuned with, else 256",
    )
    parser.add_argument(
        "--batch_size", type=int, default=32, help="texts in a batch, more if short"
    )


def embedder_of(options: Namespace) -> Embedder:
    from fastadv.embedder import Embedder

    return Embedder.from_pretrained(
        model_of(options), max_length=options.max_length, batch_size=options.batch_size
    )


def run(options: Namespace) -> None:
    data = Reading(options, []).file("input", options.input)
    hush(options.quiet)
    embedder = embedder_of(options)
    if options.output.endswith(".npy"):
        write_array(options.output, embedder.iter_embed(data, options.chunk_size))
    else:
        _write_lines(options.output, embedder, data, options.chunk_size)


def write_array(path: str, chunks: Iterator[NDArray[np.float32]]) -> None:
    """(n, H) arrays as one .npy file of (N, H) float32, whose N is known only at the end."""
    from numpy.lib import format as npy

    with binary_output(path) as file:
        rows = width = begins = 0
        for chunk in chunks:
            if not rows:
                width = chunk.shape[1]
                npy.write_array_header_1_0(file, _header(0, width))
                begins = file.tell()
            file.write(chunk.astype("<f4", copy=False).tobytes())
            rows += len(chunk)
        file.seek(0)
        # NumPy leaves room in the header for the first number to grow.
        npy.write_array_header_1_0(file, _header(rows, width))
        assert not rows or file.tell() == begins
        file.seek(0, 2)


def _header(rows: int, width: int) -> dict[str, object]:
    return {"descr": "<f4", "fortran_order": False, "shape": (rows, width)}


def _write_lines(path: str, embedder: Embedder, data: Data | DataFile, chunk_size: int) -> None:
    from fastadv.data import Document, iter_texts

    documents, texts = tee(iter_texts(data, Document))
    with text_output(path) as file:
        for chunk in embedder.iter_embed(documents, chunk_size):
            for row in chunk:
                # Nine digits are enough to restore every float32 exactly.
                embedding = [float(f"{value:.9g}") for value in row]
                record = {"text": next(texts).text, "embedding": embedding}
                file.write(json.dumps(record, ensure_ascii=False, allow_nan=False) + "\n")
            file.flush()
