"""The breakdown by operation of the whole-step benchmark."""

from __future__ import annotations

import importlib
import sys
import time
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from torch.autograd import DeviceType

from fastadv.ops import masked_mean_pool

CPU = torch.device("cpu")
pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def counting() -> ModuleType:
    return importlib.import_module("step.operations")


@pytest.mark.parametrize(
    ("names", "group"),
    [
        ("aten::addmm", "matrix products"),
        ("mkldnn::_linear_pointwise", "matrix products"),
        ("fastadv::linear < _PackedPass", "matrix products"),
        ("fastadv::linear_backward_weight", "matrix products"),
        ("fastadv::linear_gelu", "matrix products"),
        ("fastadv::linear_pack", "copies and casts"),
        ("fastadv::linear_bce", "linear_bce"),
        ("fastadv::varlen_attention", "varlen_attention"),
        ("aten::mm < fastadv::varlen_attention_backward", "varlen_attention_backward"),
        ("aten::copy_ < aten::_to_copy < aten::to", "copies and casts"),
        ("aten::bmm < aten::matmul < aten::_scaled_dot_product_attention_math", "attention"),
        ("aten::_scaled_dot_product_flash_attention_for_cpu_backward", "attention"),
        ("aten::_softmax < aten::softmax < aten::scaled_dot_product_attention", "attention"),
        ("aten::_log_softmax", "everything else"),
        ("aten::mul < aten::dropout", "dropout"),
        ("aten::native_layer_norm_backward < NativeLayerNormBackward0", "layer norm"),
        ("aten::gelu_backward < GeluBackward0", "gelu"),
        ("aten::fill_ < aten::zero_ < aten::embedding_dense_backward", "zero fills"),
        ("aten::embedding_dense_backward", "embedding"),
        ("aten::add_ < torch::autograd::AccumulateGrad", "adds and sums"),
        ("aten::sqrt < Optimizer.step#Adam.step", "optimiser"),
        ("aten::zero_ < Optimizer.step#Adam.step", "optimiser"),
        ("aten::_fused_adam_", "optimiser"),
        ("aten::mm < ## Call CompiledFxGraph f5 ## < CompiledFunction", "matrix products"),
        ("## Call CompiledFxGraph f5 ##", "compiled graphs"),
        ("aten::mul", "everything else"),
        ("NativeLayerNormBackward0", None),
        ("autograd::engine::evaluate_function: GeluBackward0", None),
        ("torch::autograd::AccumulateGrad", None),
        ("_MaskedMeanPool", None),
        ("TorchDynamo Cache Lookup", None),
    ],
)
def test_groups(counting: ModuleType, names: str, group: str | None) -> None:
    assert counting.group_of(*names.split(" < ")) == group


def test_the_time_of_a_piece_of_work(counting: ModuleType) -> None:
    x, table = torch.randn(300, 300), torch.randn(50, 300, requires_grad=True)
    gradient = torch.randn(50, 300)
    adam = torch.optim.Adam([table])

    def work() -> None:
        for _ in range(4):
            x @ x
        time.sleep(0.2)
        torch.layer_norm(table, [300]).backward(gradient)
        adam.step()

    work()
    start = time.perf_counter()
    found = counting.operations(work, CPU)
    wall = time.perf_counter() - start
    assert {"matrix products", "layer norm", "optimiser"} < set(found)
    assert list(found)[-1] == counting.OVERHEAD
    # Asleep is not in an operation.
    assert 0.2 <= found[counting.OVERHEAD] < sum(found.values()) <= wall
    known = list(found.values())[:-1]
    assert all(s > 0 for s in known) and known == sorted(known, reverse=True)


def test_overhead_is_what_is_left_of_the_wall_clock(
    counting: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(counting, "seconds", lambda work, device: work() and 5.0)
    found = counting.operations(lambda: [torch.ones(4)], CPU)
    assert found["zero fills"] > 0
    # Float64 sums of a few numbers.
    assert sum(found.values()) == pytest.approx(5.0, rel=1e-12)


def test_operations_of_the_library_have_their_names(counting: ModuleType) -> None:
    x = torch.randn(9, 8, requires_grad=True)
    offsets = torch.tensor([0, 4, 9], dtype=torch.int32)

    def work() -> None:
        masked_mean_pool(x, offsets, backend="native").sum().backward()

    assert {"masked_mean_pool", "masked_mean_pool_backward"} < set(counting.operations(work, CPU))


def test_triton_functions_have_the_native_names(
    counting: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = ModuleType("fastadv.kernels.some_op")

    def some_op_backward(x: torch.Tensor, *, times: int) -> torch.Tensor:
        return module._helper(x) * times

    some_op_backward.__module__ = module.__name__
    module.some_op_backward, module._helper = some_op_backward, lambda x: x + 1
    monkeypatch.setattr(counting.backends, "OPERATIONS", ("some_op", "of_no_module"))
    monkeypatch.setitem(sys.modules, module.__name__, module)
    x, results = torch.ones(2), []
    found = counting.operations(lambda: results.append(module.some_op_backward(x, times=3)), CPU)
    assert results[0].tolist() == [6, 6]
    assert set(found) == {"some_op_backward", counting.OVERHEAD}
    assert module.some_op_backward is some_op_backward


def test_on_a_gpu_every_kernel_counts_once(counting: ModuleType) -> None:
    def kernel(name: str, microseconds: float) -> Any:
        return SimpleNamespace(name=name, duration=microseconds)

    def on_cpu(name: str, parent: Any, *kernels: Any) -> Any:
        return SimpleNamespace(
            name=name, cpu_parent=parent, kernels=list(kernels), device_type=DeviceType.CPU
        )

    def on_gpu(name: str, microseconds: float, annotation: bool = False) -> Any:
        span = SimpleNamespace(elapsed_us=lambda: microseconds)
        return SimpleNamespace(
            name=name,
            time_range=span,
            device_type=DeviceType.CUDA,
            is_user_annotation=annotation,
        )

    update = on_cpu("Optimizer.step#Adam.step", None)
    events = [
        update,
        on_cpu("aten::sqrt", update, kernel("elementwise", 5)),
        on_cpu("aten::mul", None, kernel("elementwise", 3), kernel("Memset (Device)", 2)),
        on_cpu("fastadv::bias_gelu", None, kernel("_forward_kernel", 7)),
        on_cpu("_PackedPass", None, kernel("nvjet_tst_128", 11)),
        on_gpu("elementwise", 5),
        on_gpu("elementwise", 3),
        on_gpu("Memset (Device)", 2),
        on_gpu("_forward_kernel", 7),
        on_gpu("nvjet_tst_128", 11),
        # Launched by a graph, which no operation is behind.
        on_gpu("nvjet_tst_128", 13),
        on_gpu("elementwise", 17),
        on_gpu("Optimizer.step#Adam.step", 40, annotation=True),
    ]
    found: dict[str, float] = {}
    for group, microseconds in counting._on_gpu(events):
        found[group] = found.get(group, 0) + microseconds
    assert {group: s for group, s in found.items() if s} == {
        "optimiser": 5,
        "everything else": 3 + 17,
        "zero fills": 2,
        "bias_gelu": 7,
        "matrix products": 11 + 13,
    }
