"""The masked-language model against transformers' own."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tiny_pretraining import prepared, settings
from torch import Tensor
from torch.nn import functional as F
from transformers import AutoModel, AutoModelForMaskedLM, AutoTokenizer, BertForMaskedLM

from fastadv.pretraining.masking import MaskedBatch
from fastadv.pretraining.pretrainer import Pretrainer
from fastadv.pretraining.run import PretrainingRun

pytestmark = pytest.mark.usefixtures("one_thread")

# Of the largest element: sums of some hundred float32 products in another order.
FLOAT32 = 2e-5


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prepared(tmp_path_factory.mktemp("run"), settings())


def pretrainer(folder: Path, **changes: object) -> Pretrainer:
    return PretrainingRun(folder, True, "cpu", settings(**changes)).pretrainer


def twin(ours: Pretrainer, folder: Path) -> BertForMaskedLM:
    """transformers' model of the same weights, by way of the saved folder."""
    ours.save_pretrained(folder)
    return AutoModelForMaskedLM.from_pretrained(folder, dtype=torch.float32)


def padded_losses(model: BertForMaskedLM, batch: MaskedBatch) -> Tensor:
    ids, mask = batch.pad(0)
    logits = model(ids, attention_mask=mask).logits.flatten(0, 1)
    assert batch.masked is not None and batch.labels is not None
    rows = batch.padded_indices()[batch.masked]
    return F.cross_entropy(logits[rows], batch.labels, reduction="none")


@pytest.mark.parametrize("sparse", [True, False])
def test_losses_and_gradients_are_those_of_transformers(
    folder: Path, tmp_path: Path, sparse: bool
) -> None:
    ours = pretrainer(folder)
    ours.model.encoder.embeddings.word.sparse = sparse
    ours.model.task_head.bias.data.normal_()
    theirs = twin(ours, tmp_path).eval()
    batch = ours.prepare(0)[0]
    expected = padded_losses(theirs, batch)
    torch.testing.assert_close(ours.model.token_losses(batch), expected, atol=1e-5, rtol=FLOAT32)
    expected.mean().backward()
    names = [name for name, _ in ours.model.named_parameters()]
    loss = ours.model.task_loss(batch)
    parameters = list(ours.model.parameters())
    found = dict(zip(names, torch.autograd.grad(loss, parameters, allow_unused=True), strict=True))
    table = found["encoder.embeddings.word.weight"]
    # Rows that were read and rows that were scored: all of them.
    assert table is not None
    their_table = theirs.bert.embeddings.word_embeddings.weight.grad
    _close(table.to_dense() if table.is_sparse else table, their_table)
    cls = theirs.cls.predictions
    _close(found["task_head.bias"], cls.bias.grad)
    _close(found["task_head.dense.weight"], cls.transform.dense.weight.grad)
    _close(found["task_head.norm.weight"], cls.transform.LayerNorm.weight.grad)
    layer = theirs.bert.encoder.layer[0]
    _close(found["encoder.layers.0.intermediate.weight"], layer.intermediate.dense.weight.grad)
    assert found["discriminator.weight"] is None


def _close(found: Tensor | None, expected: Tensor | None) -> None:
    assert found is not None and expected is not None
    scale = float(expected.abs().max())
    torch.testing.assert_close(found, expected, atol=FLOAT32 * scale, rtol=FLOAT32)


def test_a_step_equals_adamw_over_transformers(folder: Path, tmp_path: Path) -> None:
    ours = pretrainer(folder, weight_decay=0.1, max_grad_norm=0.5, warmup_steps=0, decay_steps=0)
    # Without dropout, which the saved folder asks for.
    theirs = twin(ours, tmp_path).eval()
    adam = torch.optim.AdamW(theirs.parameters(), 1e-3, (0.9, 0.98), 1e-6, weight_decay=0.1)
    for step in range(3):
        batches = ours.prepare(step)
        padded_losses(theirs, batches[0]).mean().backward()
        torch.nn.utils.clip_grad_norm_(theirs.parameters(), 0.5)
        adam.step()
        adam.zero_grad()
        ours.step(batches)
    with ours.model.encoder.complete() as encoder:
        for name, weight in encoder.named_parameters():
            expected = theirs.bert.get_parameter(name)
            # A quotient of moments: a gradient that is rounding alone moves by up to lr either way.
            torch.testing.assert_close(weight, expected, atol=2e-5, rtol=1e-4, msg=name)


def test_the_saved_folder_holds_what_it_says(folder: Path, tmp_path: Path) -> None:
    ours = pretrainer(folder, saved_precision="bf16")
    ours.save_pretrained(tmp_path)
    model, info = AutoModelForMaskedLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    assert model.dtype == torch.bfloat16
    assert model.config.hidden_dropout_prob == model.config.attention_probs_dropout_prob == 0.1
    assert ours.model.encoder.config.hidden_dropout_prob == 0
    assert model.cls.predictions.decoder.weight is model.bert.embeddings.word_embeddings.weight
    encoder = AutoModel.from_pretrained(tmp_path, dtype=torch.float32)
    weight = ours.model.encoder.embeddings.word.weight
    assert torch.equal(encoder.embeddings.word_embeddings.weight, weight.bfloat16().float())
    # The tokenizer is the one the corpus was made with.
    text = "la pluie tombe"
    saved = AutoTokenizer.from_pretrained(tmp_path)
    assert saved(text)["input_ids"] == ours.tokenizer(text)["input_ids"]


def test_bfloat16_is_as_close_as_autocast(folder: Path, tmp_path: Path) -> None:
    ours = pretrainer(folder, precision="bf16")
    theirs = twin(ours, tmp_path)
    batch = ours.prepare(0)[0]
    with torch.no_grad():
        exact = padded_losses(theirs, batch)
        with torch.autocast("cpu", torch.bfloat16):
            low = padded_losses(theirs, batch)
        found = ours.model.token_losses(batch)
    # Both round the same products; the sum of two such errors is twice one of them.
    assert (found - exact).norm() <= 2 * (low - exact).norm()


def test_the_output_bias_begins_as_log_frequencies(folder: Path) -> None:
    ours = pretrainer(folder)
    ids = {n: ours.corpus.input_ids[n] for n in ours.labels}
    shares = ours.corpus.shares(0.7)
    piece = int(ids["en"][0])
    expected = sum(shares[n] * float((ids[n] == piece).mean()) for n in ids)
    assert ours.model.task_head.bias[piece].item() == pytest.approx(
        torch.log(torch.tensor(expected + 1e-6)).item(), rel=1e-5
    )


def test_held_out_losses_are_a_mean_over_all_masked_pieces(folder: Path) -> None:
    ours = pretrainer(folder)
    batches = ours.batches.held_out_batches("de", 10**9)
    assert len(batches) == 1
    ours.model.eval()
    with torch.no_grad():
        expected = float(ours.model.token_losses(batches[0]).mean())
    assert ours.held_out_losses()["de"] == pytest.approx(expected, rel=1e-5)
