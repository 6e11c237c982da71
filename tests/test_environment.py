"""The report of `python -m fastadv env`."""

from __future__ import annotations

import json

import pytest
import torch

from fastadv import backends
from fastadv.environment import collect, report


def test_tells_what_runs_and_why_the_rest_does_not() -> None:
    text = report()
    for wanted in ("torch", "transformers", "triton", "python", torch.__version__, "threads"):
        assert wanted in text
    for op in backends.OPERATIONS:
        for device in ("cpu", "cuda"):
            assert f"{op} on {device}: " in text
    if not torch.cuda.is_available():
        assert "no GPU is visible" in text


def test_is_plain_data() -> None:
    facts = json.loads(json.dumps(collect()))
    assert set(facts["operations"]) == set(backends.OPERATIONS)
    for op, devices in facts["operations"].items():
        for device, choices in devices.items():
            assert set(choices["backends"]) == set(backends.BACKENDS)
            if device == "cpu" and not facts["asked_for"]:
                assert choices["default"] == backends.resolve(op, device)


def test_says_why_the_extension_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backends, "extension", None)
    monkeypatch.setattr(backends, "extension_error", "it was left out")
    monkeypatch.setattr(backends, "_reasons", {})
    text = report()
    assert "extension     it was left out" in text
    assert "native  it was left out" in text
    assert "masked_mean_pool on cpu: torch" in text


def test_says_what_the_environment_forces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FASTADV_BACKEND", "torch")
    assert "FASTADV_BACKEND=torch overrides the defaults" in report()


def test_features_agree_with_torch() -> None:
    if backends.extension is None:
        pytest.skip(f"no extension: {backends.extension_error}")
    features = backends.extension.cpu_features()
    capability = torch.backends.cpu.get_cpu_capability()
    if capability.startswith("AVX512"):
        assert features["avx512f"]
    if capability in ("AVX2", "AVX512"):
        assert features["avx2"]
