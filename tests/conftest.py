"""For every test: no network, Ctrl-C as in a terminal, Triton interpreted where there is no GPU."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

# Read when triton is first imported, so it must stand before any test module.
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TRANSFORMERS_OFFLINE"] = "1"
# A shell starts background jobs with SIGINT ignored; tests of Ctrl-C mean that of a terminal.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """A test that opens a connection fails; sockets within this machine are left alone."""
    connect = socket.socket.connect

    def guarded(self: socket.socket, address: Any) -> None:
        local = ("localhost", "127.0.0.1", "::1")
        if self.family in (socket.AF_INET, socket.AF_INET6) and address[0] not in local:
            raise AssertionError(f"a test opens a connection to {address}")
        connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", guarded)


@pytest.fixture
def poisoned_memory() -> Iterator[None]:
    """Fresh tensors hold NaN (the largest integer), so an element nobody writes shows."""
    before = torch.are_deterministic_algorithms_enabled()
    fill = torch.utils.deterministic.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    assert torch.empty(3).isnan().all()
    yield
    torch.use_deterministic_algorithms(before)
    torch.utils.deterministic.fill_uninitialized_memory = fill


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Tiny tensors gain nothing from threads, and lose much where cores are busy."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def two_threads() -> Iterator[None]:
    """At least two threads, however many the machine has; the old number afterwards."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def as_on_intel(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Has MKL take the code that it keeps for Intel's processors, which splits sums otherwise."""
    library = next(Path(torch.__file__).parent.glob("lib/libtorch_cpu.so"), None)
    compiler = shutil.which("cc")
    if (
        library is None
        or compiler is None
        or b"mkl_serv_intel_cpu_true" not in library.read_bytes()
    ):
        pytest.skip("there is no MKL in this PyTorch, or no C compiler")
    folder = tmp_path_factory.mktemp("intel")
    (folder / "intel.c").write_text("int mkl_serv_intel_cpu_true(void) { return 1; }\n")
    shared = folder / "intel.so"
    subprocess.run([compiler, "-shared", "-fPIC", "-o", shared, folder / "intel.c"], check=True)
    return {"LD_PRELOAD": str(shared)}
