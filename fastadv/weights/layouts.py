"""Matrix products with weights, and the copies of weights that they read."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.parameter import Parameter
from torch.optim.optimizer import Optimizer, register_optimizer_step_post_hook
from torch.utils.weak import WeakTensorKeyDictionary

from fastadv import backends
from fastadv.weights.flat import FlatParameters

# Weights that a layout was made of.
_known: Any = WeakTensorKeyDictionary()


def _count_updates(optimizer: Optimizer, *_: Any) -> None:
    """Runs after a step of any optimiser: PyTorch's fused ones do not increment the versions of
    what they write, as its others and every in-place operation do.
    """
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            if parameter in _known:
                torch.autograd.graph.increment_version(parameter)


register_optimizer_step_post_hook(_count_updates)


def _state(weight: Parameter) -> tuple[int, int]:
    """Changes with the weight: updates in place raise its version; a new one has new memory."""
    return weight._version, weight.data_ptr()


class WeightLayouts:
    """Weight matrices in the type of the matrix products, laid out for either direction.

    Args:
        dtype: The type of the matrix products.
        backend: Backend of `linear`; None for the default.
    """

    def __init__(self, dtype: torch.dtype, backend: str | None) -> None:
        self.dtype, self.backend = dtype, backend
        self._made: Any = WeakTensorKeyDictionary()

    def __reduce__(self) -> tuple[Any, ...]:
        # A copy, pickled or not, makes layouts of its own weights.
        return WeightLayouts, (self.dtype, self.backend)

    def product(self, x: Tensor, weight: Parameter, bias: Tensor | None, y: Tensor) -> None:
        """y (T, N) = x (T, K) W^T + b, for weight (N, K) and bias (N,)."""
        layout = self._layouts(weight)[1]
        if self._native(x):
            torch.ops.fastadv.linear(x, layout, bias, y)
        elif bias is None:
            torch.mm(x, layout.t(), out=y)
        else:
            torch.addmm(bias.to(x.dtype), x, layout.t(), out=y)

    def fuses_gelu(self, x: Tensor, weight: Parameter) -> bool:
        """Whether `product_gelu` and its backward can run: in bfloat16, on a CPU that can multiply
        bfloat16 matrices.
        """
        return self._native(x) and self._layouts(weight)[1].dim() == 1

    def product_gelu(
        self, x: Tensor, weight: Parameter, bias: Tensor, y: Tensor | None, activated: Tensor
    ) -> None:
        """activated (T, N) = gelu(x W^T + b), and y = x W^T if it is given."""
        torch.ops.fastadv.linear_gelu(x, self._layouts(weight)[1], bias, y, activated)

    def backward_input_gelu(
        self,
        grad: Tensor,
        weight: Parameter,
        x: Tensor,
        bias: Tensor,
        grad_x: Tensor,
        activated: Tensor,
        grad_bias: Tensor,
    ) -> None:
        """From grad (T, K) of a matrix product with gelu(x + bias) to grad_x (T, N) of x and
        grad_bias; activated becomes gelu(x + bias).
        """
        torch.ops.fastadv.linear_gelu_backward(
            grad, self._layouts(weight)[2], x, bias, grad_x, activated, grad_bias
        )

    def backward_input(self, grad: Tensor, weight: Parameter, grad_x: Tensor) -> None:
        """grad_x (T, K) = grad (T, N) W."""
        layout = self._layouts(weight)[2]
        if self._native(grad):
            torch.ops.fastadv.linear(grad, layout, None, grad_x)
        else:
            torch.mm(grad, layout, out=grad_x)

    def backward_weight(
        self, grad: Tensor, x: Tensor, grad_weight: Tensor, grad_bias: Tensor | None
    ) -> Tensor | None:
        """grad_weight (N, K) = grad^T x and grad_bias (N,) the sums of grad's columns, in the type
        of the weights.

        Returns:
            The sum of grad_weight's squares, () float64, where it costs nothing.
        """
        if self._native(x):
            squares = torch.empty((), dtype=torch.float64)
            torch.ops.fastadv.linear_backward_weight(grad, x, grad_weight, grad_bias, squares)
            return squares
        if grad_weight.dtype == x.dtype:
            torch.mm(grad.t(), x, out=grad_weight)
        elif x.is_cuda:
            torch.mm(grad.t(), x, out_dtype=grad_weight.dtype, out=grad_weight)
        else:
            torch.mm(grad.t().to(grad_weight.dtype), x.to(grad_weight.dtype), out=grad_weight)
        if grad_bias is not None:
            torch.sum(grad, 0, dtype=grad_bias.dtype, out=grad_bias)
        return None

    def packed(self, weight: Parameter) -> tuple[Tensor, Tensor] | None:
        """Both layouts of the current weight, where they are ours (bfloat16, native)."""
        made = self._made.get(weight)
        if made is None or made[0] != _state(weight) or made[1].dim() != 1:
            return None
        return made[1], made[2]

    def keep_in(self, flat: FlatParameters) -> None:
        """Makes the 16-bit copies of weight matrices parts of `flat.low`; whoever changes
        `flat.weight` must keep them in step with it.
        """
        assert flat.low is not None
        for weight, low in zip(flat.parameters, flat.views(flat.low), strict=True):
            if weight.dim() == 2 and not self._native(weight):
                self._made[weight] = (_state(weight), low, low)
                _known[weight] = True

    def rewritten_in(self, flat: FlatParameters) -> None:
        """Notes that whoever changed `flat.weight` also changed `flat.low`."""
        assert flat.low is not None
        for weight, low in zip(flat.parameters, flat.views(flat.low), strict=True):
            made = self._made.get(weight)
            if made is not None and made[1].data_ptr() == low.data_ptr():
                self.rewritten(weight)

    def refresh(self) -> None:
        """Updates, in their own memory, the copies of weights that changed: called before a CUDA
        graph that reads them is replayed.
        """
        for weight in list(self._made):
            self._layouts(weight)

    def rewritten(self, weight: Parameter) -> None:
        """Notes that whoever changed the weight also changed its layouts."""
        self._made[weight] = (_state(weight), *self._made[weight][1:])

    def _native(self, x: Tensor) -> bool:
        return backends.resolve("linear", x.device, self.backend) == "native"

    def _layouts(self, weight: Parameter) -> tuple[tuple[int, int], Tensor, Tensor]:
        state = _state(weight)
        made = self._made.get(weight)
        if made is None or made[0] != state:
            # The pass of a training step could not overwrite an inference tensor.
            with torch.inference_mode(False):
                made = (state, *self._packed_again(weight.detach(), made))
            self._made[weight] = made
            _known[weight] = True
        return made

    def _packed_again(
        self, weight: Tensor, made: tuple[Any, Tensor, Tensor] | None
    ) -> tuple[Tensor, Tensor]:
        plain = made is not None and made[1].shape == weight.shape and self.dtype != weight.dtype
        if made is not None and plain and made[1].device == weight.device:
            # In the old memory, because a CUDA graph reads it there.
            forward, backward = made[1:]
            forward.copy_(weight)
            if backward is not forward:
                backward.copy_(weight.t())
            return forward, backward
        return self._pack(weight)

    def _pack(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        if self._native(weight):
            forward, backward = torch.ops.fastadv.linear_pack(weight, self.dtype)
            return forward, backward
        low = weight.to(self.dtype)
        return low, low
