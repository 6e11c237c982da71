"""Steps that are replayed, against the same steps run one by one.

Without a GPU kernels run in Triton's interpreter, and a recording (tests/recording.py) stands for a
CUDA graph: it makes the same calls with the same numbers and tensors again.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import tiny
import torch
from recording import record
from tuners import assert_close, batches, tuner_of, weights

from fastadv import AdversarialFinetuner, FinetuneConfig, backends
from fastadv.nn.packed_encoder import PackedBert
from fastadv.run.state import state_of
from fastadv.training.step_graphs import StepGraphs, why_no_graphs
from fastadv.training.trainer import Trainer

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


@pytest.fixture
def as_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Triton's kernels, and PyTorch's products as there; the CPU's own have layouts of weights that
    the host makes.
    """
    pytest.importorskip("triton")
    if backends.why_not("adam", "triton", "cpu") is not None:
        pytest.skip("triton does not interpret here")
    monkeypatch.setitem(backends.DEFAULTS, ("linear", "cpu"), ("torch",))
    yield


def small(**changes: Any) -> AdversarialFinetuner:
    model = tiny.tiny_bert(num_hidden_layers=1, num_attention_heads=2)
    return tuner_of(True, model, backend="triton", **changes)


def graphs_of(tuner: AdversarialFinetuner, **options: Any) -> StepGraphs:
    return StepGraphs(tuner.trainer, **options)


def one_step(graphs: StepGraphs, tuner: AdversarialFinetuner, number: int) -> Any:
    host = tuner.trainer.step_count
    cpu = [batch.to("cpu") for batch in batches(tuner, number)]
    return graphs.step(graphs.host_step(host, *cpu))


@pytest.mark.usefixtures("as_on_a_gpu", "two_threads")
def test_replayed_steps_equal_those_run() -> None:
    """To the bit, in bfloat16 with dropout, while batches, rates and step counts change."""
    kinds: dict[str, Any] = {"precision": "bf16", "dropout": 0.1, "max_grad_norm": 1.0}
    tuners = [small(**kinds), small(**kinds)]
    graphs = [graphs_of(tuners[0]), graphs_of(tuners[1], capture=record, after=1)]
    for number in range(5):
        for tuner in tuners:
            tuner.trainer.optimizers["task"].lr = [1e-3, 1e-3, 1e-4, 5e-4, 0.0][number]
        found = [one_step(g, t, number) for g, t in zip(graphs, tuners, strict=True)]
        for name in ("task", "discriminator", "generator", "discriminator_accuracy"):
            assert torch.equal(getattr(found[0], name), getattr(found[1], name)), name
    assert (graphs[0].captured, graphs[1].captured) == (0, 2)
    states = [state_of(tuner)[0] for tuner in tuners]
    for name, tensor in states[0].items():
        assert torch.equal(tensor, states[1][name]), name


@pytest.mark.usefixtures("as_on_a_gpu", "two_threads")
@pytest.mark.parametrize("what", ["seed", "rate"])
def test_a_number_of_the_capture_is_noticed(what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The test above can fail: where a number is the host's, a replay has that of its capture."""
    if what == "seed":

        def seed_of_host(self: PackedBert, batch: Any) -> Any:
            return torch.full((1,), tuner.trainer.step_count)

        monkeypatch.setattr(PackedBert, "_seed", seed_of_host)
    losses = []
    for capture in (None, record):
        tuner = small(dropout=0.3, adversarial=False)
        graphs = graphs_of(tuner, capture=capture, after=0)
        optimizer = tuner.trainer.optimizers["task"]
        if what == "rate":
            step = optimizer.step

            monkeypatch.setattr(optimizer, "step", host_rate(tuner, optimizer, step))
        losses.append([float(one_step(graphs, tuner, number).task) for number in range(3)])
    # The third loss is the first after a replayed step.
    assert losses[0][0] == losses[1][0] and losses[0][2] != losses[1][2]


def host_rate(tuner: AdversarialFinetuner, optimizer: Any, step: Any) -> Any:
    """An optimiser's step with a rate that is a number of the host's."""

    def stepped(gradients: Any, squares: Any = None) -> Any:
        optimizer._rates[3].fill_(1e-2 * (1 + tuner.trainer.step_count))
        return step(gradients, squares)

    return stepped


def test_waiting_for_the_device_cannot_be_recorded() -> None:
    with pytest.raises(RuntimeError, match="_local_scalar_dense waits for the device"):
        record(lambda: torch.ones(1) * float(torch.ones(1).sum()))


def test_filled_up_batches_train_as_they_are() -> None:
    """Over some steps, without graphs and without dropout, whose masks go by place."""
    graphed, plain = tuner_of(True, dropout=0.0), tuner_of(False, dropout=0.0)
    graphs = graphs_of(graphed)
    for number in range(5):
        found = one_step(graphs, graphed, number)
        wanted = plain.step(*batches(plain, number))
        assert float(found.task) == pytest.approx(wanted.task, rel=1e-5)
        assert float(found.discriminator_accuracy) == wanted.discriminator_accuracy
    assert_close(plain, graphed, rtol=3e-6, atol=3e-7)


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_filled_up_batches_drop_the_same_units(dtype: str) -> None:
    """Masks go by the place of a token: T's tokens, and D's, are where they are without filling
    up, and a step has one seed however it runs.
    """
    graphed, plain, undropped = (
        tuner_of(on_device, dropout=dropout, precision=dtype)
        for on_device, dropout in ((True, 0.3), (False, 0.3), (False, 0.0))
    )
    for tuner in (graphed, plain, undropped):
        # As it is after training: at first its scores are all but 0.
        tuner.model.discriminator.weight.data.mul_(100)
    found = one_step(graphs_of(graphed), graphed, 0)
    wanted, other = (tuner.step(*batches(tuner, 0)) for tuner in (plain, undropped))
    for name in ("task", "discriminator"):
        # Sums in other blocks round otherwise; other masks would be far off, as without any.
        assert float(getattr(found, name)) == pytest.approx(getattr(wanted, name), rel=1e-5)
        assert getattr(other, name) != pytest.approx(getattr(wanted, name), rel=1e-3)


def test_preparing_a_graph_trains_nothing() -> None:
    tuner = tuner_of(True, adversarial=True)
    one_step(graphs_of(tuner), tuner, 0)
    graphs = graphs_of(tuner, capture=lambda part: (object(), part()))
    before, count = weights(tuner), tuner.trainer.step_count
    graphs.record(graphs.host_step(1, *batches(tuner, 1)))
    assert graphs.captured == 2 and tuner.trainer.step_count == count
    after = weights(tuner)
    assert all(torch.equal(before[name], after[name]) for name in before)
    states = tuner.trainer.optimizers["task"].state_dict()["state"].values()
    assert {float(state["step"]) for state in states} == {1.0}
    graphs.record(graphs.host_step(1, *batches(tuner, 1)))
    assert graphs.captured == 2


def test_few_sizes_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fastadv.training.step_graphs.LIMIT", 1)
    tuner = tuner_of(True, adversarial=False)
    graphs = graphs_of(tuner)
    for texts in (tiny.ENGLISH[:1], tiny.ENGLISH * 4, tiny.ENGLISH[:1]):
        graphs.step(graphs.host_step(tuner.trainer.step_count, tuner.collate(texts)))
        assert len(graphs._slots) == 1


def test_weights_that_others_changed_are_read() -> None:
    """Products read copies of them, which a graph does not make."""
    tuner = tuner_of(True, precision="bf16", adversarial=False)
    graphs = graphs_of(tuner)
    first = float(one_step(graphs, tuner, 0).task)
    with torch.no_grad():
        for parameter in tuner.model.encoder.layers.parameters():
            parameter.zero_()
    assert float(one_step(graphs, tuner, 0).task) != pytest.approx(first, rel=1e-3)


def test_copies_are_brought_up_to_date_before_a_graph(monkeypatch: pytest.MonkeyPatch) -> None:
    """In place, where it reads them."""
    monkeypatch.setitem(backends.DEFAULTS, ("linear", "cpu"), ("torch",))
    tuner = tuner_of(True, precision="bf16", adversarial=False)
    graphs = graphs_of(tuner)
    one_step(graphs, tuner, 0)
    flat, weight = tuner.model.encoder.flat, tuner.model.encoder.layers[0].qkv.weight
    assert flat is not None and flat.low is not None
    with torch.no_grad():
        weight.fill_(0.75)
    own = flat.named_views(flat.low)["encoder.layers.0.qkv.weight"]
    seen: list[bool] = []

    def run(*_: Any) -> torch.Tensor:
        seen.append(bool(own.eq(0.75).all()))
        return torch.zeros(1)

    monkeypatch.setattr(graphs, "_run", run)
    one_step(graphs, tuner, 0)
    assert seen == [True]


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"cuda_graphs": False}, "the configuration says cuda_graphs=False"),
        ({"head_dropout": 0.1}, "head dropout is drawn from PyTorch's own generator"),
        ({}, None),
    ],
)
def test_why_no_graphs(changes: dict[str, Any], reason: str | None) -> None:
    assert why_no_graphs(tuner_of(True, **changes).trainer) == reason


def test_updates_of_the_host_have_no_graphs() -> None:
    assert why_no_graphs(tuner_of(False).trainer) == "updates are decided on the host"


def test_a_run_over_filled_up_batches(tmp_path: Any) -> None:
    """`fit` with steps prepared ahead: it stops where it should, and goes on as if it had not."""

    def run(steps: int, folder: str, resume: bool = False) -> AdversarialFinetuner:
        config = FinetuneConfig(steps=steps, max_length=16, batch_size=2, precision="fp32",
                                checkpoint_every=0, eval_every=0, log_every=1)  # fmt: skip
        tuner = AdversarialFinetuner(
            tiny.tiny_bert(), labels=tiny.LABELS, config=config, tokenizer=tiny.tiny_tokenizer(),
            device="cpu",
        )  # fmt: skip
        tuner.trainer = Trainer(tuner.model, tuner.config, capturable=True)
        tuner.fit(tiny.ENGLISH, {"de": tiny.GERMAN}, output_dir=tmp_path / folder, resume=resume,
                  quiet=True)  # fmt: skip
        assert tuner.trainer.step_count == steps
        return tuner

    whole = run(7, "whole")
    run(3, "parts")
    parts = run(7, "parts", resume=True)
    mine, theirs = state_of(whole)[0], state_of(parts)[0]
    # What waits was done at the end of the first part, in other pieces.
    for name, tensor in mine.items():
        if name.startswith("model."):
            torch.testing.assert_close(tensor, theirs[name], rtol=1e-6, atol=1e-7)
    assert (tmp_path / "whole" / "metrics.jsonl").read_text().count('"train"') == 7


def gpu_tuner(**changes: Any) -> AdversarialFinetuner:
    config = FinetuneConfig(**{"max_length": 16, "lr_task": 1e-3, "lr_generator": 1e-3,
                               "lr_discriminator": 1e-3, "eps": 1e-4, **changes})  # fmt: skip
    model = tiny.tiny_bert(hidden_size=64, num_attention_heads=2, intermediate_size=128)
    return AdversarialFinetuner(
        model, labels=tiny.LABELS, config=config, tokenizer=tiny.tiny_tokenizer(), device="cuda"
    )


@needs_gpu
@pytest.mark.parametrize("precision", ["bf16", "fp16", "fp32"])
def test_cuda_graphs_equal_eager_steps(precision: str) -> None:
    """To the bit: no kernel uses atomics, and products are the same calls."""
    tuners = [gpu_tuner(precision=precision, dropout=0.1) for _ in range(2)]
    graphs = [graphs_of(tuners[0], after=1 << 30), graphs_of(tuners[1], after=2)]
    for number in range(100):
        found = [one_step(g, t, number % 7) for g, t in zip(graphs, tuners, strict=True)]
        assert torch.equal(found[0].task, found[1].task), number
    assert graphs[1].captured > 0
    mine, theirs = (weights(tuner) for tuner in tuners)
    for name, weight in mine.items():
        assert torch.equal(weight, theirs[name]), name


@needs_gpu
def test_cuda_steps_never_wait() -> None:
    """Those that are replayed."""
    tuner = gpu_tuner(dropout=0.1)
    graphs = graphs_of(tuner)
    cpu = [[batch.to("cpu") for batch in batches(tuner, number)] for number in range(6)]
    for number in range(4):
        graphs.step(graphs.host_step(number, *cpu[0]))
    prepared = [graphs.host_step(4 + k, *cpu[0]) for k in range(2)]
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        for host_step in prepared:
            graphs.step(host_step)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert graphs.captured == 2


@needs_gpu
def test_cuda_steps_equal_those_of_the_cpu() -> None:
    """Device-decided updates in float32 against the CPU's, over 100 steps."""
    on_gpu = gpu_tuner(precision="fp32", dropout=0.0)
    model = tiny.tiny_bert(hidden_size=64, num_attention_heads=2, intermediate_size=128)
    on_cpu = tuner_of(False, model, dropout=0.0)
    graphs = graphs_of(on_gpu)
    for number in range(100):
        one_step(graphs, on_gpu, number % 7)
        on_cpu.step(*batches(on_cpu, number % 7))
    mine, theirs = weights(on_cpu), weights(on_gpu)
    for name, weight in mine.items():
        # 100 steps of 1e-3 move weights by 0.1; products round in another order.
        torch.testing.assert_close(theirs[name].cpu(), weight, rtol=1e-3, atol=1e-4)


@pytest.mark.usefixtures("as_on_a_gpu")
def test_replayed_steps_have_the_rate_of_their_step() -> None:
    kinds: dict[str, Any] = {
        "lr_scheduler_type": "linear",
        "steps": 5,
        "warmup_steps": 2,
        "precision": "bf16",
    }
    tuners = [small(**kinds), small(**kinds)]
    graphs = [graphs_of(tuners[0]), graphs_of(tuners[1], capture=record, after=1)]
    for number in range(5):
        for graph, tuner in zip(graphs, tuners, strict=True):
            one_step(graph, tuner, number)
        assert tuners[1].trainer.optimizers["task"].lr == tuners[0].config.rates(number)["task"]
    assert graphs[1].captured == 2
    states = [state_of(tuner)[0] for tuner in tuners]
    for name, tensor in states[0].items():
        assert torch.equal(tensor, states[1][name]), name
