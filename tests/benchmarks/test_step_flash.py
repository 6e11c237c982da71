"""Baseline B2 of the whole-step benchmark."""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from transformers import RobertaConfig, RobertaModel

from fastadv.batches.packing import IGNORE_INDEX, pack
from fastadv.batches.tokenization import TokenSequence

CPU = torch.device("cpu")
Load = Callable[[str], Any]
pytestmark = pytest.mark.usefixtures("one_thread")
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


@pytest.fixture
def load() -> Load:
    return importlib.import_module


def make_setup(load: Load, shape: str = "ner", device: str = "cpu", **changes: Any) -> Any:
    models, batches = load("step.models"), load("step.batches")
    encoder = models.make_encoder("tiny", None, least_vocab=1)
    tokenizer = batches.make_tokenizer(None, None)
    settings = encoder, tokenizer, batches.SHAPES[shape], torch.device(device), "fp32", None
    return models.make_setup(*settings).with_config(**changes)


def drawn(load: Load, shape: str = "ner", count: int = 4, seed: int = 0) -> Any:
    batches = load("step.batches")
    return batches.DrawnTexts(batches.SHAPES[shape], 500, seed).step(count)


def example(*lengths: int, **fields: Any) -> list[TokenSequence]:
    return [TokenSequence(np.arange(1, n + 1, dtype=np.int32), **fields) for n in lengths]


@pytest.mark.parametrize("backend", [None, "eager"])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("shape", ["ner", "news"])
def test_computes_what_the_reference_does(
    load: Load, monkeypatch: pytest.MonkeyPatch, shape: str, precision: str, backend: str | None
) -> None:
    check, flash = load("step.check"), load("step.flash")
    monkeypatch.setattr(flash.Flash, "backend", backend)
    setup = make_setup(load, shape, precision=precision)
    found = check.check(flash.Flash, setup, check.check_draws(setup))
    assert found.passed and (found.low_precision is not None) == (precision == "bf16")


def test_windows_count_as_they_do_in_the_reference(load: Load) -> None:
    draws = load("step.batches").StepDraws(
        drawn(load).labeled,
        *([example(9), example(8, 2)], [example(4), example(7)]),
        *([example(3, 2, 1), example(6)], [example(5, 4), example(12)]),
    )
    assert load("step.check").check(load("step.flash").Flash, make_setup(load), draws).passed


@pytest.mark.parametrize(
    ("count", "bucket"),
    [(1, 64), (64, 64), (65, 68), (127, 128), (128, 128), (129, 136), (640, 640), (641, 672)],
)
def test_tokens_of_a_bucket(load: Load, count: int, bucket: int) -> None:
    assert load("step.buckets").bucket_tokens(count) == bucket


@pytest.mark.parametrize(("count", "room"), [(1, 8), (7, 8), (8, 16), (32, 40), (64, 72)])
def test_sequences_of_a_bucket(load: Load, count: int, room: int) -> None:
    assert load("step.buckets").bucket_sequences(count) == room


def test_a_bucket_by_hand(load: Load) -> None:
    sides = pack([example(3), example(66)], english=[False, True])
    found = load("step.flash").fill(sides)
    # 69 tokens and three of filler; of 128 places a sequence.
    assert found.key == (72, 8, 128)
    assert found.cu_seqlens.tolist() == [0, 3, 69, 72, 72, 72, 72, 72, 72]
    assert found.cu_seqlens.dtype == torch.int32
    assert found.input_ids[66:].tolist() == [64, 65, 66, 0, 0, 0]
    assert found.position_ids[66:].tolist() == [63, 64, 65, 0, 1, 2]
    assert found.places[[0, 2, 3, 68, 69]].tolist() == [0, 2, 128, 193, 256]
    assert found.inverse.tolist() == pytest.approx([1 / 3, 1 / 66, 0, 0, 0, 0, 0, 0])
    assert found.targets.tolist() == [-1, 1, 0, 0, 0, 0, 0, 0]
    assert found.shares.tolist() == [1, 1, 0, 0, 0, 0, 0, 0]
    assert found.labels is None and found.scale is None
    labeled = load("step.flash").fill(pack([example(3, label=2), example(5, label=0)]))
    assert labeled.labels.tolist() == [2, 0] + [IGNORE_INDEX] * 6 and labeled.scale == 0.5
    # No filler has a position beyond the longest text's.
    assert labeled.key == (64, 8, 64) and labeled.position_ids.max() == 4


@pytest.mark.parametrize("shape", ["ner", "news"])
def test_every_draw_fits_its_bucket(load: Load, shape: str) -> None:
    flash = load("step.flash")
    for count in (1, 2, 5, 16):
        for seed in range(4):
            for batch in drawn(load, shape, count, seed).packed():
                found = flash.fill(batch)
                tokens, sequences, longest = found.key
                sizes = found.cu_seqlens.diff()
                assert batch.num_tokens <= tokens and len(sizes) == sequences
                assert sizes.sum() == tokens and sizes.max() <= longest
                assert found.position_ids.max() < batch.max_seqlen
                assert len(found.places.unique()) == tokens


def test_filler_tokens_change_nothing(load: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    flash = load("step.flash")
    system, draws = flash.Flash(make_setup(load, dropout=0.0)), drawn(load)
    usual = system.gradients(system.prepare(draws))
    monkeypatch.setattr(load("step.buckets"), "bucket_tokens", lambda count: count + 150)
    monkeypatch.setattr(load("step.buckets"), "bucket_sequences", lambda count: count + 9)
    more = system.prepare(draws)
    # Other pieces than the padding's: they must count for nothing too.
    for bucket in more:
        bucket.input_ids[-150:] = 7
    for phase, (loss, gradients) in system.gradients(more).items():
        # Rounded otherwise in sums over other numbers of rows; a filler counted gives 1e-2.
        assert float(loss) == pytest.approx(float(usual[phase][0]), rel=1e-5)
        for name, gradient in gradients.items():
            torch.testing.assert_close(gradient, usual[phase][1][name], rtol=1e-4, atol=1e-6)


def test_discriminator_phase_has_no_encoder_gradient(load: Load) -> None:
    system = load("step.flash").Flash(make_setup(load))
    batches = system.prepare(drawn(load))
    system.backward("task", batches[0])
    system.backward("discriminator", batches[1])
    filled = {n for n, p in system._parameters().items() if p.grad is not None}
    assert filled == {"discriminator.weight", "discriminator.bias"}


def test_the_pieces_are_one_step(load: Load) -> None:
    flash, systems = load("step.flash"), load("step.systems")
    setup = make_setup(load, lr_generator=1e-3, precision="bf16")
    whole, apart = flash.Flash(setup), flash.Flash(setup)
    for seed in (0, 1):
        draws = drawn(load, seed=seed)
        torch.manual_seed(seed)
        whole.step(whole.prepare(draws))
        torch.manual_seed(seed)
        pieces = apart.pieces(apart.prepare(draws))
        assert tuple(name for name, _ in pieces) == systems.PIECES
        for _, work in pieces:
            work()
    expected = whole.weights()
    # The same operations in the same order, on one thread.
    assert all(torch.equal(w, expected[n]) for n, w in apart.weights().items())


def test_first_states_of_adam_move_nothing(load: Load) -> None:
    system = load("step.flash").Flash(make_setup(load))
    before = {n: w.clone() for n, w in system.weights().items()}
    system._create_states()
    assert all(torch.equal(w, before[n]) for n, w in system.weights().items())
    for adam in system._adams.values():
        assert len(adam.state) == len(adam.param_groups[0]["params"])
        assert all(not value.any() for state in adam.state.values() for value in state.values())
    assert all(p.grad is None for p in system._parameters().values())


def test_other_models_are_refused(load: Load) -> None:
    small = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4}
    model = RobertaModel(RobertaConfig(vocab_size=50, intermediate_size=64, **small))
    setup = dataclasses.replace(make_setup(load), encoder=model)
    with pytest.raises(ValueError, match=r"found a roberta encoder.*expected bert"):
        load("step.flash").Flash(setup)


@needs_gpu
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("shape", ["ner", "news"])
def test_cuda_computes_what_the_reference_does(load: Load, shape: str, precision: str) -> None:
    check = load("step.check")
    setup = make_setup(load, shape, "cuda", precision=precision)
    assert check.check(load("step.flash").Flash, setup, check.check_draws(setup)).passed


@needs_gpu
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_cuda_graphs_of_changing_shapes_are_eager_steps(load: Load, precision: str) -> None:
    flash = load("step.flash")
    rate = dict.fromkeys(("lr_task", "lr_discriminator", "lr_generator"), 1e-4)
    setup = make_setup(load, "news", "cuda", dropout=0.0, precision=precision, **rate)
    graph, eager = flash.Flash(setup), flash.Flash(setup)
    start = {n: w.clone() for n, w in graph.weights().items()}
    # Sizes that change and come back: a graph must not read what another left.
    for seed, count in ((0, 2), (1, 5), (2, 3), (0, 2), (1, 5)):
        batches = graph.prepare(drawn(load, "news", count, seed))
        ours, theirs = graph.step(batches), eager._run(batches)
        for phase, loss in theirs.items():
            # The backward passes add up in an order of their own: bfloat16 rounds by 4e-3.
            assert float(ours[phase]) == pytest.approx(float(loss), rel=1e-2)
    assert len(graph._graphs) == 3
    moved, expected = (
        torch.cat([(w - start[n]).flatten() for n, w in system.weights().items()])
        for system in (graph, eager)
    )
    # Adam moves what is nothing but rounding (key biases) either way; a step left out is 20%.
    assert (moved - expected).norm() <= 0.15 * expected.norm()


@needs_gpu
def test_cuda_warm_up_leaves_weights_and_states(load: Load) -> None:
    system = load("step.flash").Flash(make_setup(load, "ner", "cuda", precision="bf16"))
    system.warm_up(system.prepare(drawn(load)))
    system.step(system.prepare(drawn(load)))

    def everything() -> list[torch.Tensor]:
        states = [s for a in system._adams.values() for s in a.state.values()]
        return [*system.weights().values(), *(v for state in states for v in state.values())]

    before = [tensor.clone() for tensor in everything()]
    batches = system.prepare(drawn(load, count=9, seed=5))
    assert len(system._graphs) == 2
    assert all(torch.equal(a, b) for a, b in zip(everything(), before, strict=True))
    system.step(batches)
    assert not all(torch.equal(a, b) for a, b in zip(everything(), before, strict=True))


@needs_gpu
def test_cuda_graphs_draw_new_dropout(load: Load) -> None:
    rate = dict.fromkeys(("lr_task", "lr_discriminator", "lr_generator"), 0.0)
    system = load("step.flash").Flash(make_setup(load, "ner", "cuda", precision="bf16", **rate))
    batches = system.prepare(drawn(load))
    losses = [float(system.step(batches)["task"]) for _ in range(3)]
    assert len(set(losses)) == 3
