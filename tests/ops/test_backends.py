"""Which backend runs: by argument, context, environment and default; and saying why not."""

from __future__ import annotations

import pytest
import torch
from op_checks import CPU_LEVELS, need, run_at_cpu_level

from fastadv import backends
from fastadv.backends import resolve, use_backend, why_not
from fastadv.ops import masked_mean_pool

OP = "masked_mean_pool"


@pytest.fixture
def no_extension(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backends, "extension_error", "the extension is not built")
    monkeypatch.setattr(backends, "_reasons", {})


def test_argument_before_context_before_environment_before_default(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    need(OP, "native", "cpu")
    monkeypatch.delenv("FASTADV_BACKEND", raising=False)
    assert resolve(OP, "cpu") == backends.DEFAULTS[OP, "cpu"][0] == "native"
    monkeypatch.setenv("FASTADV_BACKEND", "torch")
    assert resolve(OP, "cpu") == "torch"
    with use_backend("native"):
        assert resolve(OP, "cpu") == "native"
        with use_backend("torch"):
            assert resolve(OP, "cpu") == "torch"
        assert resolve(OP, "cpu") == "native"
        assert resolve(OP, "cpu", "torch") == "torch"
    assert resolve(OP, "cpu") == "torch"


def test_context_is_left_after_an_error() -> None:
    with pytest.raises(KeyError), use_backend("torch"):
        raise KeyError
    assert backends._forced is None


@pytest.mark.usefixtures("no_extension")
def test_default_goes_on_and_a_named_backend_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FASTADV_BACKEND", raising=False)
    assert resolve(OP, "cpu") == "torch"
    x, cu_seqlens = torch.ones(2, 3), torch.tensor([0, 2], dtype=torch.int32)
    assert masked_mean_pool(x, cu_seqlens).tolist() == [[1.0, 1.0, 1.0]]
    wanted = "backend 'native' cannot run masked_mean_pool on cpu: the extension is not built"
    with pytest.raises(RuntimeError, match=wanted):
        masked_mean_pool(x, cu_seqlens, backend="native")
    with use_backend("native"), pytest.raises(RuntimeError, match=wanted):
        masked_mean_pool(x, cu_seqlens)
    monkeypatch.setenv("FASTADV_BACKEND", "native")
    with pytest.raises(RuntimeError, match=wanted):
        masked_mean_pool(x, cu_seqlens)


def test_unknown_names(monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = "backend is 'cudnn', expected one of torch, native, triton"
    with pytest.raises(ValueError, match=wanted):
        resolve(OP, "cpu", "cudnn")
    with pytest.raises(ValueError, match=wanted), use_backend("cudnn"):
        pass
    monkeypatch.setenv("FASTADV_BACKEND", "cudnn")
    with pytest.raises(ValueError, match=wanted):
        resolve(OP, "cpu")
    with pytest.raises(ValueError, match="operation is 'softmax', expected one of"):
        why_not("softmax", "torch", "cpu")


def test_reasons() -> None:
    for op in backends.OPERATIONS:
        assert why_not(op, "torch", "cpu") is None
        assert why_not(op, "torch", torch.device("meta")) is None
        for backend in ("native", "triton"):
            reason = why_not(op, backend, "meta")
            assert reason is not None
            assert any(word in reason for word in ("meta", "extension", "installed", "products"))
    assert resolve(OP, "meta") == "torch"


def test_every_operation_has_defaults_for_cpu_and_cuda() -> None:
    wanted = {(op, device) for op in backends.OPERATIONS for device in ("cpu", "cuda")}
    assert set(backends.DEFAULTS) == wanted
    for order in backends.DEFAULTS.values():
        assert order[-1] == "torch"
        assert set(order) <= set(backends.BACKENDS)


def test_extension_of_another_torch_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    need(OP, "native", "cpu")
    monkeypatch.setattr(torch, "__version__", "2.9.1+cpu")
    extension, error = backends._load_extension()
    assert extension is None
    assert error is not None
    assert "this is PyTorch 2.9.1" in error
    # As versions, not as text: 2.13 is 2.13.1's release, and 2.1 is not 2.13's.
    assert backends._release("2.13.1+cu130") == (2, 13)
    assert backends._release("2.1") != backends._release("2.13")


LEVEL_SCRIPT = """
import torch
from functools import partial
from fastadv.ops import linear_bce, masked_mean_pool
from op_checks import DTYPES, POOL_CASES, check_bce, check_pool
for dtype in DTYPES:
    for case in POOL_CASES.values():
        check_pool(partial(masked_mean_pool, backend="native"), case, dtype)
    check_bce(partial(linear_bce, backend="native"), 33, 77, dtype)
from test_masked_mean_pool import test_conversions_are_exact
test_conversions_are_exact(torch.float16)
test_conversions_are_exact(torch.bfloat16)
"""


@pytest.mark.parametrize(("level", "allowed"), CPU_LEVELS)
def test_every_cpu_level(level: str, allowed: list[str]) -> None:
    need(OP, "native", "cpu")
    run_at_cpu_level(LEVEL_SCRIPT, level, allowed)
