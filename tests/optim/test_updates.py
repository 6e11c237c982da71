"""The optimisers inside a finetuner: rows that wait, layouts, norms, what is not finite."""

from __future__ import annotations

import copy
import logging
import pickle
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch

import fastadv.training.phase_optimizers
from fastadv import AdversarialFinetuner, FinetuneConfig
from fastadv.backends import use_backend
from fastadv.run.state import state_of


def tuner_of(**changes: Any) -> AdversarialFinetuner:
    config = FinetuneConfig(**{"max_length": 16, "precision": "bf16", **changes})
    return AdversarialFinetuner(
        tiny.tiny_bert(), labels=tiny.LABELS, config=config, tokenizer=tiny.tiny_tokenizer(),
        device="cpu",
    )  # fmt: skip


def one_step(tuner: AdversarialFinetuner) -> None:
    draw = tuner.collate(tiny.GERMAN, [text for text, _ in tiny.ENGLISH])
    tuner.step(tuner.collate(tiny.ENGLISH), draw, draw)


def test_frozen_parameters_are_not_trained_here() -> None:
    """The trainer leaves them out, and a table among them does not wait for anything."""
    config = FinetuneConfig(max_length=16, precision="fp32")
    model = tiny.tiny_bert()
    model.embeddings.word_embeddings.weight.requires_grad_(False)
    tuner = AdversarialFinetuner(
        model, labels=tiny.LABELS, config=config, tokenizer=tiny.tiny_tokenizer(), device="cpu"
    )
    assert tuner.trainer.deferred is None
    word = tuner.model.encoder.embeddings.word.weight
    before, version = word.detach().clone(), word._version
    draw = tuner.collate(tiny.GERMAN, [text for text, _ in tiny.ENGLISH])
    tuner.step(tuner.collate(tiny.ENGLISH), draw, draw)
    assert torch.equal(word, before) and word._version == version
    assert "encoder.embeddings.word.weight" not in tuner.trainer.optimizers["task"].names


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"encoder": "padded"}, "the encoder runs padded"),
        ({"weight_decay": 0.01}, "weight decay moves every row by what it is"),
        ({"beta1": 0.95, "beta2": 0.9}, "let momentum outlive its scale"),
    ],
)
def test_a_table_that_cannot_wait_is_updated_densely(
    changes: dict[str, Any], reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    """It is said once a process, and the step works."""
    fastadv.training.phase_optimizers._say_dense.cache_clear()
    with caplog.at_level(logging.WARNING, logger="fastadv"):
        first, _ = tuner_of(**changes), tuner_of(**changes)
    assert first.trainer.deferred is None
    said = [r.getMessage() for r in caplog.records if "the word table is updated" in r.getMessage()]
    assert len(said) == 1 and reason in said[0]
    one_step(first)


def test_no_gradient_of_the_tables_size() -> None:
    tuner = tuner_of()
    batch = tuner.collate(tiny.ENGLISH)
    tuner.model.train()
    _, gradients = tuner.trainer.task_gradients(batch)
    named = dict(zip(tuner.trainer.optimizers["task"].names, gradients, strict=True))
    word = named["encoder.embeddings.word.weight"]
    assert word is not None and word.is_sparse
    read = batch.input_ids.unique()
    assert torch.equal(word.coalesce().indices()[0], read)
    assert len(read) < len(tuner.model.encoder.embeddings.word.weight) / 2


def test_updates_write_the_layouts_that_products_read() -> None:
    """The next forward packs nothing, and reads what packing would have given."""
    tuner = tuner_of()
    one_step(tuner)
    layouts, found = tuner.model.encoder.layouts, 0
    for name, parameter in tuner.model.encoder.named_parameters():
        pair = layouts.packed(parameter)
        if pair is not None:
            wanted = torch.ops.fastadv.linear_pack(parameter.detach(), torch.bfloat16)
            assert all(torch.equal(a, b) for a, b in zip(pair, wanted, strict=True)), name
            found += 1
    packs = torch.ops.fastadv.linear_pack(torch.ones(2, 2), torch.bfloat16)[0].dim() == 1
    layers = len(tuner.model.encoder.layers)
    assert found == (4 * layers if packs else 0)


@pytest.mark.parametrize("encoder", ["packed", "padded"])
def test_a_phase_whose_gradient_is_not_finite(encoder: str) -> None:
    """Stopped, or skipped: T's update is left out, D's and G's are done."""
    for nonfinite in ("stop", "skip"):
        tuner = tuner_of(encoder=encoder, nonfinite_gradients=nonfinite)
        with torch.no_grad():
            tuner.model.task_head.weight[0, 0] = float("inf")
        before = {n: p.detach().clone() for n, p in tuner.model.named_parameters()}
        if nonfinite == "stop":
            with pytest.raises(FloatingPointError, match="not finite, expected numbers"):
                one_step(tuner)
        else:
            one_step(tuner)
        optimizers = tuner.trainer.optimizers
        assert optimizers["task"].skipped == (nonfinite == "skip")
        assert optimizers["generator"].skipped == 0
        moved = {n for n, p in tuner.model.named_parameters() if not torch.equal(p, before[n])}
        assert not any(n.startswith("task_head.") for n in moved)
        assert any(n.startswith("discriminator.") for n in moved) == (nonfinite == "skip")


def test_norms_that_the_pass_knows_are_those_of_the_gradients() -> None:
    tuner = tuner_of()
    tuner.model.train()
    _, gradients = tuner.trainer.task_gradients(tuner.collate(tiny.ENGLISH))
    named = dict(zip(tuner.trainer.optimizers["task"].names, gradients, strict=True))
    squares = tuner.trainer.squares()
    assert len(squares) == 4 * len(tuner.model.encoder.layers)
    for name, found in squares.items():
        gradient = named[name]
        assert gradient is not None
        # Sums of up to 256 squares in float32.
        wanted = float(gradient.double().square().sum())
        assert float(found) == pytest.approx(wanted, rel=1e-5), name


def broken_at(tuner: AdversarialFinetuner, step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The task's gradient of one step holds an infinity, and the loss is no number."""
    gradients_of = tuner.trainer.task_gradients

    def task_gradients(batch: Any) -> Any:
        loss, found = gradients_of(batch)
        if tuner.trainer.step_count == step:
            bias = found[tuner.trainer.optimizers["task"].names.index("task_head.bias")]
            assert bias is not None
            bias[0] = float("inf")
            loss = loss * float("nan")
        return loss, found

    monkeypatch.setattr(tuner.trainer, "task_gradients", task_gradients)


def test_a_run_goes_on_past_a_skipped_update(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """It is counted in every record since, the loss that was none is not in the mean, and the
    count is in the checkpoint.
    """
    common: dict[str, Any] = {"batch_size": 3, "log_every": 2, "nonfinite_gradients": "skip"}
    tuner = tuner_of(steps=6, **common)
    broken_at(tuner, 3, monkeypatch)
    history = tuner.fit(tiny.ENGLISH, {"de": tiny.GERMAN}, output_dir=tmp_path, quiet=True)
    trained = [r for r in history.records if r["kind"] == "train"]
    assert [r.get("skipped_updates") for r in trained] == [None, 1, 1]
    assert all(0 < r["loss_task"] < 10 for r in trained)
    longer = tuner_of(steps=8, **common)
    history = longer.fit(
        tiny.ENGLISH, {"de": tiny.GERMAN}, output_dir=tmp_path, resume=True, quiet=True
    )
    assert history.records[-1]["skipped_updates"] == 1


def test_a_run_stops_at_a_gradient_that_is_not_finite(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    tuner = tuner_of(steps=6, batch_size=3, checkpoint_every=2)
    broken_at(tuner, 3, monkeypatch)
    with pytest.raises(FloatingPointError, match=r"of task_head\.bias .* checkpoint of step 2 is"):
        tuner.fit(tiny.ENGLISH, {"de": tiny.GERMAN}, output_dir=tmp_path, quiet=True)


@pytest.mark.parametrize("backend", ["torch", "triton"])
def test_backends_that_write_no_layouts_leave_them_to_be_made_again(backend: str) -> None:
    """In bfloat16 the products are PyTorch's or native under any backend."""
    tuner = tuner_of(backend=backend)
    before = tuner.model.encoder.layers[0].qkv.weight.detach().clone()
    one_step(tuner)
    weight = tuner.model.encoder.layers[0].qkv.weight
    assert not torch.equal(weight, before)
    assert tuner.model.encoder.layouts.packed(weight) is None
    one_step(tuner)


def test_a_copy_of_the_model_waits_for_itself() -> None:
    """A copy and a pickled copy have their own rows that wait; looking at them does them."""
    tuner = tuner_of()
    one_step(tuner)
    # Rows of the other texts are behind after a step of one text.
    draw = tuner.collate(tiny.GERMAN[:1], [tiny.ENGLISH[0][0]])
    tuner.step(tuner.collate(tiny.ENGLISH[:1]), draw, draw)
    twin = copy.deepcopy(tuner.model)
    pickled = pickle.loads(pickle.dumps(tuner.model))
    name = "encoder.embeddings.word.weight"
    stale = tuner.model.get_parameter(name).detach().clone()
    for model in (twin, pickled):
        assert not torch.equal(model.state_dict()[name], stale)
    assert torch.equal(tuner.model.get_parameter(name), stale)
    assert torch.equal(tuner.model.state_dict()[name], twin.state_dict()[name])
    assert torch.equal(pickled.state_dict()[name], twin.state_dict()[name])


def test_norms_of_another_pass_are_forgotten() -> None:
    """The pass by autograd says nothing of its gradients' norms, and another's are not its own."""
    tuner = tuner_of()
    tuner.model.train()
    batch = tuner.collate(tiny.ENGLISH)
    tuner.trainer.task_gradients(batch)
    assert tuner.trainer.squares()
    with use_backend("torch"):
        tuner.trainer.task_gradients(batch)
    assert not tuner.trainer.squares()


def behind() -> tuple[AdversarialFinetuner, list[str]]:
    """A finetuner after a step over all texts and one over a single text, and the others: rows of
    theirs are behind by a step of 1e-2.
    """
    tuner = tuner_of(lr_task=1e-2, lr_generator=1e-2, dropout=0.0, precision="fp32")
    one_step(tuner)
    draw = tuner.collate(tiny.GERMAN[:1], [tiny.ENGLISH[0][0]])
    tuner.step(tuner.collate(tiny.ENGLISH[:1]), draw, draw)
    return tuner, [text for text, _ in tiny.ENGLISH[1:]]


def test_rows_of_the_discriminators_texts_are_made_up_too() -> None:
    """What D reads, in the leading half of a pass, is what reading everything gives."""
    tuner, others = behind()
    wanted = torch.from_numpy(tuner.embed(others))
    first = tuner.collate(tiny.GERMAN[:1], others)
    second = tuner.collate(tiny.GERMAN[:1], [tiny.ENGLISH[0][0]])
    tuner.model.train()
    pooled, _ = tuner.trainer.pooled_draws(first, second)
    # Other sums, of packed batches of other sizes, in float32; a missed step moves weights by 1e-2.
    torch.testing.assert_close(pooled[1:], wanted, rtol=0, atol=1e-5)


def test_looking_changes_no_bit_of_what_training_goes_on_from() -> None:
    tuner, others = behind()
    before = {n: t.clone() for n, t in state_of(tuner)[0].items()}
    tuner.embed(others)
    tuner.predict(others)
    tuner.evaluate({"train": tiny.ENGLISH})
    with tuner.model.encoder.complete():
        pass
    after = state_of(tuner)[0]
    assert before.keys() == after.keys()
    assert all(torch.equal(t, after[n]) for n, t in before.items())
    # There was something to make up.
    tuner.trainer.flush()
    word = "model.encoder.embeddings.word.weight"
    assert not torch.equal(before[word], state_of(tuner)[0][word])
