"""Recording work as a CUDA graph does, on a CPU: kernels with the arguments that they had."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

# What would make the host wait, so that a capture fails.
WAITS = {"_local_scalar_dense", "nonzero", "item", "equal", "is_nonzero", "unique2"}


class Recording:
    """A list of calls, in order, each with the tensors and numbers of the time of recording."""

    def __init__(self, calls: list[Callable[[], None]]) -> None:
        self.calls, self.done = calls, True

    def replay(self) -> None:
        """Makes the calls again; the first time nothing, since recording made them already."""
        if self.done:
            self.done = False
            return
        with torch.no_grad():
            for call in self.calls:
                call()


class _Recorder(TorchDispatchMode):
    def __init__(self, calls: list[Callable[[], None]]) -> None:
        super().__init__()
        self.calls = calls

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = func.overloadpacket.__name__
        if name in WAITS:
            raise RuntimeError(f"{name} waits for the device, which a capture does not allow")
        result = func(*args, **kwargs)
        flat = torch.utils._pytree.tree_leaves((args, kwargs, result))
        if func.is_view or any(isinstance(x, Tensor) and x.is_sparse for x in flat):
            # What is seen through it is seen again; sparse tensors hold what they were made of.
            return result
        places = [x for x in (result if isinstance(result, (tuple, list)) else [result])
                  if isinstance(x, Tensor)]  # fmt: skip

        def call() -> None:
            again = func(*args, **kwargs)
            new = again if isinstance(again, (tuple, list)) else [again]
            for old, value in zip(places, [x for x in new if isinstance(x, Tensor)], strict=True):
                if old.data_ptr() != value.data_ptr():
                    old.copy_(value)

        self.calls.append(call)
        return result


def record(part: Callable[[], Tensor]) -> tuple[Recording, Tensor]:
    """Runs a part, and remembers every operation of PyTorch and every kernel of Triton in it."""
    from triton.runtime.interpreter import InterpretedFunction

    calls: list[Callable[[], None]] = []
    run = InterpretedFunction.run

    def launched(self: Any, *args: Any, **kwargs: Any) -> Any:
        calls.append(lambda: run(self, *args, **kwargs))
        # What the interpreter itself does with tensors is no part of the work.
        with torch.utils._python_dispatch._disable_current_modes():
            return run(self, *args, **kwargs)

    InterpretedFunction.run = launched
    try:
        with _Recorder(calls):
            result = part()
    finally:
        InterpretedFunction.run = run
    return Recording(calls), result
