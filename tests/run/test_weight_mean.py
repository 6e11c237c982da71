"""mean/ is the mean of the weights at the evaluations in the second half of a run."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from safetensors.torch import load_file
from torch import Tensor

from fastadv import AdversarialFinetuner, FinetuneConfig
from fastadv.records.history import History
from fastadv.run.weight_mean import WeightMean

pytestmark = pytest.mark.usefixtures("one_thread")


class Recorder:
    """The weights at every evaluation."""

    def __init__(self, tuner: AdversarialFinetuner) -> None:
        self.model = tuner.model
        self.weights: dict[int, dict[str, Tensor]] = {}

    def observe(self, step: int, model: Any, tested: Any) -> Mapping[str, Any]:
        self.weights[step] = {n: p.detach().clone() for n, p in self.model.named_parameters()}
        return {}


def tuner_of(**changes: Any) -> AdversarialFinetuner:
    settings = {"steps": 8, "batch_size": 3, "max_length": 16, "eval_every": 2, "lr_task": 3e-3}
    return AdversarialFinetuner(
        tiny.tiny_bert(), labels=tiny.LABELS,
        config=FinetuneConfig(**{**settings, "mean_weights": True, **changes}),
        tokenizer=tiny.tiny_tokenizer(), device="cpu",
    )  # fmt: skip


def fit(tuner: AdversarialFinetuner, folder: Path | None, **options: Any) -> History:
    return tuner.fit(
        tiny.ENGLISH, {"de": tiny.GERMAN}, dev=tiny.ENGLISH, test={"test": tiny.ENGLISH[:5]},
        output_dir=folder, quiet=True, **options,
    )  # fmt: skip


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_it_is_the_mean_of_the_second_half(tmp_path: Path, precision: str) -> None:
    tuner = tuner_of(precision=precision)
    recorder = Recorder(tuner)
    history = fit(tuner, tmp_path / "run", observer=recorder)
    assert [*recorder.weights] == [2, 4, 6, 8]
    mean = AdversarialFinetuner.from_pretrained(tmp_path / "run" / "mean")
    for name, parameter in mean.model.named_parameters():
        if name.startswith("discriminator"):
            continue
        kept = torch.stack([recorder.weights[step][name] for step in (4, 6, 8)]).double()
        # A sum of three float32 numbers and its quotient round three times.
        torch.testing.assert_close(
            parameter.double(), kept.mean(dim=0), rtol=3 * 2**-24, atol=1e-9,
            msg=lambda text, name=name: f"{name}: {text}",
        )  # fmt: skip
    record = history.records[-1]
    assert record["kind"] == "mean" and record["step"] == 8 and record["evaluations"] == 3
    assert mean.evaluate({"test": tiny.ENGLISH[:5]}) == record["test"]
    assert mean.evaluate({"dev": tiny.ENGLISH})["dev"] == record["dev"]
    assert history.evaluations()[-1]["step"] == 8


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_finetuner_keeps_the_last_weights_and_trains_as_without(
    tmp_path: Path, precision: str
) -> None:
    with_, without = (tuner_of(precision=precision, mean_weights=mean) for mean in (True, False))
    fit(with_, tmp_path / "with")
    fit(without, tmp_path / "without")
    first, second = (dict(tuner.model.named_parameters()) for tuner in (with_, without))
    assert [name for name in first if not torch.equal(first[name], second[name])] == []
    name = "last/model.safetensors"
    assert (tmp_path / "with" / name).read_bytes() == (tmp_path / "without" / name).read_bytes()
    assert not (tmp_path / "without" / "mean").exists()
    scores = with_.evaluate({"test": tiny.ENGLISH})
    assert scores == without.evaluate({"test": tiny.ENGLISH})


def test_stopped_anywhere_it_is_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = fit(tuner_of(checkpoint_every=1), tmp_path / "whole")
    parts = tmp_path / "parts"
    for step in (3, 5, 7):
        tuner = tuner_of(checkpoint_every=1)
        trained = tuner.trainer.step

        def stop(
            *batches: Any, tuner: Any = tuner, trained: Any = trained, step: int = step
        ) -> Any:
            if tuner.trainer.step_count == step:
                raise RuntimeError("power cut")
            return trained(*batches)

        monkeypatch.setattr(tuner.trainer, "step", stop)
        with pytest.raises(RuntimeError, match="power cut"):
            fit(tuner, parts, resume=True)
    found = fit(tuner_of(checkpoint_every=1), parts, resume=True)
    assert found.records[-1] == whole.records[-1]
    for path in (tmp_path / "whole" / "mean").iterdir():
        assert (parts / "mean" / path.name).read_bytes() == path.read_bytes()
    # Once more, of a run that is finished.
    again = fit(tuner_of(checkpoint_every=1), parts, resume=True)
    assert [r["kind"] for r in again.records] == [r["kind"] for r in whole.records]


def test_a_run_resumed_for_more_steps_begins_a_new_mean(tmp_path: Path) -> None:
    fit(tuner_of(steps=4), tmp_path / "run")
    tuner = tuner_of(steps=12)
    recorder = Recorder(tuner)
    fit(tuner, tmp_path / "run", resume=True, observer=recorder)
    mean = load_file(tmp_path / "run" / "mean" / "model.safetensors")
    name = "embeddings.LayerNorm.weight"
    ours = next(n for n in recorder.weights[12] if n.endswith("embeddings.norm.weight"))
    kept = torch.stack([recorder.weights[step][ours] for step in (6, 8, 10, 12)]).double()
    found = next(tensor for key, tensor in mean.items() if key.endswith(name)).double()
    # Four numbers: four roundings.
    torch.testing.assert_close(found, kept.mean(dim=0), rtol=4 * 2**-24, atol=0)


def test_by_hand() -> None:
    module = torch.nn.Linear(1, 1, bias=False)
    mean = WeightMean(steps=5)
    for step, weight in ((2, 100.0), (3, 1.0), (5, 4.0)):
        torch.nn.init.constant_(module.weight, weight)
        mean.add(module, step)
    assert mean.count == 2
    assert mean.weights()["weight"].item() == 2.5
    other = WeightMean(steps=5)
    other.load_state_tensors(mean.state_tensors())
    assert other.count == 2 and other.weights()["weight"].item() == 2.5


def test_without_an_evaluation_there_is_none() -> None:
    assert WeightMean(steps=2).weights() == {}
