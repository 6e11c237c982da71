"""Code blocks of Markdown pages, and a shell to run them in.

Run as a program, this is the server behind that shell's `fastadv` and `python`: a process that has
imported the library once and forks for every call, so that a page of ten commands does not import
torch ten times. A call is a process of its own all the same, with the caller's arguments, folder,
environment, standard streams and exit status.
"""

from __future__ import annotations

import json
import os
import re
import runpy
import signal
import socket
import subprocess
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

FENCE = re.compile(r"^```(?P<language>\S*)\n(?P<code>.*?)^```$", re.MULTILINE | re.DOTALL)

PROGRAMS = ("fastadv", "python")
LIBRARY = ("fastadv.cli.summary", "fastadv.finetuner", "matplotlib.pyplot")

# Without `site` it starts in milliseconds. Its own name says what is called.
CLIENT = """#!{python} -IS
import json, os, socket, sys
with socket.socket(socket.AF_UNIX) as server:
    server.connect({address!r})
    call = [os.path.basename(sys.argv[0]), sys.argv[1:], os.getcwd(), dict(os.environ)]
    socket.send_fds(server, [b"x"], [0, 1, 2])
    server.sendall(json.dumps(call).encode() + b"\\n")
    status = server.recv(1)
sys.exit(status[0] if status else 70)
"""


@dataclass(frozen=True)
class Block:
    """A fenced block: what follows the fence's backticks, its text, the line where that begins."""

    language: str
    code: str
    line: int


def blocks(text: str) -> list[Block]:
    """The fenced blocks of a page."""
    return [
        Block(found["language"], found["code"], text.count("\n", 0, found.start("code")) + 1)
        for found in FENCE.finditer(text)
    ]


@dataclass(frozen=True)
class Shell:
    """Runs blocks in one folder, as bash and Python would.

    Attributes:
        folder: Where the reader stands.
        environment: Of every command.
    """

    folder: Path
    environment: dict[str, str]

    def run(self, block: Block) -> subprocess.CompletedProcess[str]:
        """The block as it is printed; bash stops at the first command that fails."""
        bash, python = ["bash", "-e", "-o", "pipefail", "-c"], ["python", "-c"]
        return subprocess.run(
            [*(bash if block.language == "sh" else python), block.code],
            cwd=self.folder,
            env=self.environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=180,
            check=False,
        )


@contextmanager
def commands(folder: Path) -> Iterator[Path]:
    """Puts `fastadv` and `python` into a folder, for the front of PATH; they work while inside."""
    address = str(folder / "server")
    for name in PROGRAMS:
        client = folder / name
        client.write_text(CLIENT.format(python=sys.executable, address=address))
        client.chmod(0o755)
    server = subprocess.Popen(
        [sys.executable, __file__, address], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE
    )
    try:
        assert server.stdout is not None
        assert server.stdout.readline() == b"ready\n", "the server did not start"
        yield folder
    finally:
        server.terminate()
        server.communicate()


def serve(address: str) -> None:
    """Answers calls until it is ended."""
    import torch

    for module in LIBRARY:
        with suppress(ImportError):
            import_module(module)
    # Tiny tensors gain nothing from threads, and a process that has started some cannot fork.
    torch.set_num_threads(1)
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(address)
        server.listen()
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)
        os.write(1, b"ready\n")
        while True:
            caller, _ = server.accept()
            if os.fork() == 0:
                server.close()
                os._exit(_answer(caller))
            caller.close()


def _answer(caller: socket.socket) -> int:
    _, streams, _, _ = socket.recv_fds(caller, 1, 3)
    with caller.makefile("rb") as line:
        name, arguments, folder, environment = json.loads(line.readline())
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
        os.close(stream)
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    status = 1
    try:
        status = _call(name, arguments)
        sys.stdout.flush()
    except SystemExit as error:
        status = error.code if isinstance(error.code, int) else int(error.code is not None)
        sys.stdout.flush()
    except BaseException:
        traceback.print_exc()
    sys.stderr.flush()
    caller.sendall(bytes([status % 256]))
    return status


def _call(name: str, arguments: list[str]) -> int:
    if name == "python":
        _python(*arguments)
        return 0
    from fastadv.cli import main

    sys.argv = [name, *arguments]
    return main()


def _python(option: str, *arguments: str) -> None:
    """What `python` does with -c CODE, -m MODULE or FILE."""
    if option in ("-c", "-m"):
        sys.path[0] = ""
        what, *rest = arguments
        sys.argv = [option, *rest]
        if option == "-m":
            runpy.run_module(what, run_name="__main__", alter_sys=True)
        else:
            exec(compile(what, "<block>", "exec"), {"__name__": "__main__"})
    else:
        sys.path[0] = str(Path(option).parent.resolve())
        sys.argv = [option, *arguments]
        runpy.run_path(option, run_name="__main__")


if __name__ == "__main__":
    serve(sys.argv[1])
