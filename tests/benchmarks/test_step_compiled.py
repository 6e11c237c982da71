"""Baseline B1 of the whole-step benchmark, and how systems are timed in turn."""

from __future__ import annotations

import gc
import importlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from fastadv.batches.tokenization import TokenSequence

CPU = torch.device("cpu")
Load = Callable[[str], Any]
pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def load(monkeypatch: pytest.MonkeyPatch) -> Load:
    monkeypatch.setattr(importlib.import_module("step.compiled").Compiled, "backend", "eager")
    return importlib.import_module


def make_setup(load: Load, shape: str = "ner", **changes: Any) -> Any:
    models, batches = load("step.models"), load("step.batches")
    encoder = models.make_encoder("tiny", None, least_vocab=1)
    tokenizer = batches.make_tokenizer(None, None)
    setup = models.make_setup(encoder, tokenizer, batches.SHAPES[shape], CPU, "fp32", None)
    return setup.with_config(**changes)


def drawn(load: Load, shape: str = "ner", count: int = 4, seed: int = 0) -> Any:
    batches = load("step.batches")
    return batches.DrawnTexts(batches.SHAPES[shape], 500, seed).step(count)


def example(*lengths: int) -> list[TokenSequence]:
    return [TokenSequence(np.arange(1, n + 1, dtype=np.int32)) for n in lengths]


def test_sides_are_put_together_and_cut_in_two_by_length(load: Load) -> None:
    # A sentence of two windows goes where its longer one belongs, and counts twice.
    shorter, longer = load("step.compiled").halves(
        [example(9), example(3), example(8, 2)], [example(4), example(7), example(5)], CPU
    )
    assert shorter.batch.attention_mask.sum(1).tolist() == [3, 4, 5]
    assert longer.batch.attention_mask.sum(1).tolist() == [7, 8, 2, 9]
    assert shorter.targets.tolist() == [-1, 1, 1] and longer.targets.tolist() == [1, -1, -1, -1]
    assert shorter.shares.tolist() == pytest.approx([1 / 4, 1 / 3, 1 / 3])
    assert longer.shares.tolist() == pytest.approx([1 / 3, 1 / 4, 1 / 4, 1 / 4])


def test_windows_count_as_they_do_in_the_reference(load: Load) -> None:
    draws = load("step.batches").StepDraws(
        drawn(load).labeled,
        *([example(9), example(8, 2)], [example(4), example(7)]),
        *([example(3, 2, 1), example(6)], [example(5, 4), example(12)]),
    )
    found = load("step.check").check(load("step.compiled").Compiled, make_setup(load), draws)
    assert found.passed


def test_discriminator_phase_has_no_encoder_gradient(load: Load) -> None:
    system = load("step.compiled").Compiled(make_setup(load))
    system.backward("discriminator", system.prepare(drawn(load))[1])
    filled = {n for n, p in system._parameters().items() if p.grad is not None}
    assert filled == {"discriminator.weight", "discriminator.bias"}


@pytest.mark.parametrize("shape", ["ner", "news"])
def test_one_graph_serves_all_lengths(load: Load, shape: str) -> None:
    compiled = load("step.compiled")
    system = compiled.Compiled(make_setup(load, shape))
    system.warm_up(system.prepare(drawn(load, shape, count=6)))
    graphs = compiled.graphs_compiled()
    unpadded = 0
    for seed in (1, 2, 3):
        batches = system.prepare(drawn(load, shape, count=6, seed=seed))
        unpadded += sum(bool(p.batch.attention_mask.all()) for phase in batches for p in phase)
        system.step(batches)
    assert compiled.graphs_compiled() == graphs
    # Half a batch of news is at times all texts of the greatest length, which need no mask.
    assert unpadded > 0 or shape == "ner"


def test_warming_up_leaves_the_weights(load: Load) -> None:
    system = load("step.compiled").Compiled(make_setup(load))
    before = {n: w.clone() for n, w in system.weights().items()}
    system.warm_up(system.prepare(drawn(load)))
    assert all(torch.equal(w, before[n]) for n, w in system.weights().items())
    assert all(p.grad is None for p in system._parameters().values())


def test_compiled_for_real(load: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    compiled, systems = load("step.compiled"), load("step.systems")
    if missing := compiled.compiler_missing(CPU):
        pytest.skip(missing)
    monkeypatch.setattr(compiled.Compiled, "backend", "inductor")
    setup = make_setup(load, dropout=0.0)
    ours, oracle = compiled.Compiled(setup), systems.Padded(setup)
    graphs = []
    for seed in (0, 1):
        draws = drawn(load, seed=seed)
        # T alone: every further phase is half a minute of compiling.
        loss = ours.backward("task", ours.prepare(draws)[0])
        expected = oracle.backward("task", oracle.prepare(draws)[0])
        # Float32 sums in another order; a wrong mask or mean gives 1e-2 and more.
        assert float(loss) == pytest.approx(float(expected), rel=1e-5)
        for name, parameter in oracle._parameters().items():
            if parameter.grad is not None:
                error = (ours._parameters()[name].grad - parameter.grad).norm()
                assert error <= 1e-3 * (parameter.grad.norm() + 0.01)
        graphs.append(compiled.graphs_compiled())
    assert graphs[0] == graphs[1]


@pytest.mark.parametrize("kind", ["Library", "Padded", "Compiled"])
def test_the_pieces_are_one_step(load: Load, kind: str) -> None:
    systems = load("step.systems")
    make = getattr(load("step.compiled" if kind == "Compiled" else "step.systems"), kind)
    # Dropout on: the library's masks depend on the count of its steps.
    whole, apart = (make(make_setup(load, lr_generator=1e-3)) for _ in range(2))
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


@pytest.mark.parametrize("kind", ["Library", "Padded", "Compiled"])
def test_a_check_leaves_nothing_behind(load: Load, kind: str) -> None:
    step_time, check = load("step_time"), load("step.check")
    setup = make_setup(load).with_config(precision="bf16")
    draws = check.check_draws(setup)

    def tables() -> int:
        """Tensors as large as the table of positions: weights, moments, gradients."""
        found = [o for o in gc.get_objects() if type(o) in (torch.Tensor, torch.nn.Parameter)]
        return sum(tensor.numel() >= 512 * 32 for tensor in found)

    step_time._free(CPU)
    before = tables()
    check.check(getattr(step_time, kind), setup, draws)
    step_time._free(CPU)
    assert tables() == before


class Fake:
    """A system that notes what is asked of it, and takes the memory that it is told to."""

    log: list[str]
    held = 0
    graphs = 0

    def __init__(self, setup: Any) -> None:
        Fake.held += 10
        self.stepped = False

    def prepare(self, draws: int) -> int:
        return draws

    def warm_up(self, batches: int) -> None:
        Fake.held += 1000
        Fake.graphs += 1

    def step(self, batches: int) -> None:
        Fake.log.append(f"{self.name}{batches}")
        Fake.held += 0 if self.stepped else 5
        self.stepped = True
        # What is drawn third is a shape not seen before.
        Fake.graphs += f"{self.name}{batches}" == "y3" and Fake.log.count("y3") == 1

    def pieces(self, batches: int) -> Any:
        names = importlib.import_module("step.systems").PIECES
        return [(name, lambda n=name: Fake.log.append(f"{self.name}{n}")) for name in names]

    def clear(self) -> None:
        pass

    name = "?"


@pytest.fixture
def measured(load: Load, monkeypatch: pytest.MonkeyPatch) -> Any:
    timing = load("step.timing")

    class Memory:
        known = True

        def __init__(self, device: Any) -> None: ...

        def held(self) -> int:
            return Fake.held

        def extra(self, work: Callable[[], object]) -> int:
            work()
            return 7

    Fake.log, Fake.held, Fake.graphs = [], 0, 0
    monkeypatch.setattr(timing, "Memory", Memory)
    monkeypatch.setattr(timing, "graphs_compiled", lambda: Fake.graphs)
    kinds = [type(name, (Fake,), {"name": name}) for name in "xyz"]
    return timing.interleaved(kinds, make_setup(load), [0, 1, 2, 3])


def test_peak_memory_is_what_is_held_and_what_a_step_adds(measured: Any) -> None:
    # 10 for the system, 5 for the optimisers' states, 7 in a step; not the compiler's 1000.
    assert [m.peak_memory_bytes for m in measured.values()] == [22, 22, 22]
    assert [m.graphs for m in measured.values()] == [1, 1, 1]


def test_systems_take_turns_and_a_step_that_compiled_is_done_again(measured: Any) -> None:
    started, log = Fake.log[:6], Fake.log[6:]
    assert started == ["x0", "x0", "y0", "y0", "z0", "z0"]
    assert log[:10] == ["x1", "y1", "z1", "y2", "z2", "x2", "z3", "x3", "y3", "y3"]
    assert [m.repeated for m in measured.values()] == [0, 1, 0]
    assert [len(m.seconds) for m in measured.values()] == [3, 3, 3]
    # Half of the steps, rounded up, once more in parts, after all whole ones.
    assert log[10] == "xtask" and log[28] == "ytask"
    # And a step of each under the profiler, after everything that is timed.
    assert log[10 + 2 * 3 * 6 :] == ["x1", "y1", "z1"]
    assert all("python overhead" in m.operations for m in measured.values())
    assert all(len(times) == 2 for m in measured.values() for times in m.pieces.values())
