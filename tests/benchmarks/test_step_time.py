"""The whole-step benchmark: its options, its check, and what it reports."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

import fastadv.nn.adversary

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
TINY = ("--model-size", "tiny", "--shape", "ner", "--batch-size", "2", "--device", "cpu")
QUICK = (*TINY, "--steps", "2", "--baselines", "b0", "--precision", "fp32")
SYSTEMS = ("library", "b0", "b1")
pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def load() -> Any:
    return importlib.import_module


@pytest.fixture
def step_time(load: Any, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    module = load("step_time")
    # The machine's rates take a second and more to measure.
    monkeypatch.setattr(module, "matrix_rate", lambda device, dtype: 1e12)
    monkeypatch.setattr(module, "copy_bandwidth", lambda device: 1e9)
    # Traced as ever but not compiled, which takes a minute; test_step_compiled.py does compile.
    monkeypatch.setattr(module.Compiled, "backend", "eager")
    return module


def check_result(found: dict[str, Any], shape: str, systems: tuple[str, ...]) -> None:
    """A result holds all that the module's docstring promises, and its numbers agree."""
    assert (found["shape"], found["device"]) == (shape, "cpu")
    assert found["versions"]["torch"] == torch.__version__
    assert set(found["checks"]) == set(systems) - {"b0"}
    assert all(check["passed"] for check in found["checks"].values())
    keys = ("step_seconds", "peak_memory_bytes", "runs", "phases", "operations", "tflops")
    for key in (*keys, "floor_fractions"):
        assert tuple(found[key]) == systems, key
    runs, floor = found["runs"], found["floor"]["seconds"]
    for name, seconds in found["step_seconds"].items():
        assert len(runs[name]) == found["settings"]["steps"]
        assert seconds == pytest.approx(np.median(runs[name])) and seconds > 0
        # Rounded apart by nothing but float64.
        assert found["tflops"][name] == pytest.approx(found["floor"]["tflop"] / seconds)
        assert found["floor_fractions"][name] == pytest.approx(floor / seconds)
        parts = found["phases"][name].values()
        assert sum(part["share"] for part in parts) == pytest.approx(1)
        assert all(part["seconds"] > 0 for part in parts)
        assert isinstance(found["peak_memory_bytes"][name], int)
        check_operations(found["operations"][name], name)
    assert found["floor_fraction"] == found["floor_fractions"]["library"]
    assert found["floor"]["matrix_seconds"] + found["floor"]["copy_seconds"] == floor
    assert 0 < found["tokens"]["useful"] < found["tokens"]["padded"]
    for name in ("b0", "b1", "b2"):
        if name not in systems:
            assert found[f"ratio_{name}"] is None and name not in found["pairs"]
            continue
        pairs = [a / b for a, b in zip(runs[name], runs["library"], strict=True)]
        assert found["pairs"][name] == pytest.approx(pairs)
        assert found[f"ratio_{name}"] == pytest.approx(np.median(pairs))


def check_operations(groups: dict[str, dict[str, float]], system: str) -> None:
    assert sum(cell["share"] for cell in groups.values()) == pytest.approx(1)
    assert all(cell["seconds"] > 0 for cell in groups.values())
    assert {"matrix products", "optimiser", "python overhead"} < set(groups)
    own = {"masked_mean_pool", "linear_bce"} & set(groups)
    assert len(own) == (2 if system == "library" else 0)


def test_reports_what_it_measured(
    step_time: ModuleType,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("MALLOC_TRIM_THRESHOLD_", "1000000000")
    target = tmp_path / "report.json"
    assert step_time.main([*TINY, "--steps", "3", "--json", str(target)]) == 0
    found = json.loads(target.read_text())
    check_result(found, "ner", SYSTEMS)
    assert found["ratio_b1"] is not None and found["compile"]["b1"]["graphs"] > 0
    assert set(found["compile"]) == {"b1"}
    assert found["settings"]["batch_size"] == 2 and found["settings"]["model"] == "tiny"
    assert found["environment"]["MALLOC_TRIM_THRESHOLD_"] == "1000000000"
    assert "log-normal, median 15.7 word-pieces" in found["lengths"]
    printed = capsys.readouterr().out
    for words in (found["lengths"], "ratio b0 / library", "ratio b1 / library", "b1 equals the"):
        assert words in printed
    for words in ("generator update", "by operation", "linear_bce_grad_params", "optimiser"):
        assert words in printed
    assert "MALLOC_TRIM_THRESHOLD_ 1000000000" in printed


def test_packed_baseline_runs_on_a_cpu_when_named(
    step_time: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = tmp_path / "report.json"
    assert step_time.main([*QUICK, "--baselines", "b0,b2", "--json", str(target)]) == 0
    found = json.loads(target.read_text())
    check_result(found, "ner", ("library", "b0", "b2"))
    assert found["ratio_b2"] > 0 and not found["compile"]
    assert "ratio b2 / library" in capsys.readouterr().out


def test_both_shapes_as_a_script(tmp_path: Path) -> None:
    target = tmp_path / "report.json"
    command = [sys.executable, str(BENCHMARKS / "step_time.py"), *QUICK, "--steps", "1"]
    done = subprocess.run(
        [*command, "--shape", "both", "--json", str(target)],
        capture_output=True,
        text=True,
        timeout=300,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    report = json.loads(target.read_text())
    assert list(report) == ["results"]
    for found, shape in zip(report["results"], ("ner", "news"), strict=True):
        check_result(found, shape, ("library", "b0"))


def test_prints_no_ratio_where_the_generator_loss_is_wrong(
    step_time: ModuleType,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    # Labels not flipped: the loss of D, which is a plausible number.
    def unflipped(h: Any, english: Any, *rest: Any, **options: Any) -> Any:
        return right(h, ~english, *rest, **options)

    right = fastadv.nn.adversary.generator_loss
    monkeypatch.setattr(fastadv.nn.adversary, "generator_loss", unflipped)
    target = tmp_path / "report.json"
    assert step_time.main([*QUICK, "--json", str(target)]) == 1
    printed = capsys.readouterr().out
    assert "DIFFERS FROM" in printed and "ratio" not in printed and "seconds" not in printed
    found = json.loads(target.read_text())
    assert not found["checks"]["library"]["passed"]
    assert not {"step_seconds", "ratio_b0", "runs", "phases"} & set(found)


def test_a_wrong_baseline_is_not_timed_either(
    step_time: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    # The mean over both sides together: half of L_D and L_G.
    class Halved(step_time.Compiled):
        def _side_loss(self, part: Any, phase: str) -> Any:
            return super()._side_loss(part, phase) / 2

    monkeypatch.setattr(step_time, "SYSTEMS", (step_time.Library, step_time.Padded, Halved))
    assert step_time.main([*QUICK, "--baselines", "b1"]) == 1
    printed = capsys.readouterr().out
    assert "library equals" in printed and "b1 DIFFERS FROM" in printed and "ratio" not in printed


@pytest.mark.parametrize("phase", ["task", "discriminator", "generator"])
def test_an_update_left_out_fails_the_check(
    step_time: ModuleType, monkeypatch: pytest.MonkeyPatch, phase: str
) -> None:
    class Forgetful(step_time.Library):
        def step(self, batches: Any) -> object:
            self._tuner.trainer.optimizers[phase].step = lambda *_: None
            return super().step(batches)

    monkeypatch.setattr(step_time, "SYSTEMS", (Forgetful, step_time.Padded))
    assert step_time.main(QUICK) == 1


def test_options_reach_the_run(
    step_time: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    seen: list[Any] = []

    def run(name: str, setup: Any, texts: Any, options: Any) -> dict[str, Any]:
        seen.append((name, setup.config.backend, setup.device.type, options.baselines))
        return {"checks": {}}

    monkeypatch.setattr(step_time, "_run", run)
    small = ("--model-size", "tiny", "--device", "cpu")
    assert step_time.main([*small, "--backend", "torch", "--baselines", "b1,b0"]) == 0
    assert seen == [(name, "torch", "cpu", ("b0", "b1")) for name in ("ner", "news")]
    seen.clear()
    # B2 is for a GPU; elsewhere it is run where it is named.
    for named, expected in (((), ("b0", "b1")), (("--baselines", "b2,b0"), ("b0", "b2"))):
        assert step_time.main([*small, *named, "--shape", "ner"]) == 0
        assert seen.pop()[-1] == expected
    for wrong in (
        ("--backend", "gpu"),
        ("--baselines", "b3"),
        ("--baselines", "b0,,b2"),
        ("--model-size", "huge"),
        ("--model-size", "tiny", "--model", "."),
        ("--steps", "0"),
    ):
        with pytest.raises(SystemExit) as refused:
            step_time.main(wrong)
        assert refused.value.code == 2
    capsys.readouterr()


def test_what_cannot_run_is_said_in_a_line(
    step_time: ModuleType,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(step_time, "compiler_missing", lambda device: "found no C++ compiler")
    for options, words in (
        (("--baselines", "b1"), "--baselines b0 leaves B1 out"),
        (("--data", str(tmp_path)), "found no mbert_vocab/vocab.txt"),
        (("--json", str(tmp_path / "no" / "x.json")), "found no folder"),
    ):
        assert step_time.main([*QUICK, *options]) == 2
        printed = capsys.readouterr().err
        assert words in printed and printed.count("\n") == 1


def test_a_gradient_left_out_or_not_a_number_fails_the_check(load: Any) -> None:
    worst = load("step.check")._worst
    one, loss = torch.ones(3), torch.tensor(1.0)
    expected = {"task": (loss, {"w": one})}
    assert worst(expected, expected) == 0
    assert worst({"task": (loss, {})}, expected) > 0.9
    nan = worst({"task": (loss, {"w": one * float("nan")})}, expected)
    assert not load("step.check").Check("x", 0.0, nan, 0.0, None).passed
