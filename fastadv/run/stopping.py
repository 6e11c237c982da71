"""SIGINT and SIGTERM during a run."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path


class Stopped(KeyboardInterrupt):
    """A run was stopped by a signal, after a whole step and with a checkpoint written.

    Attributes:
        signal: SIGINT or SIGTERM.
        step: Steps done; None where several runs were stopped at once.
        output_dir: The run's folder, from which it can be resumed; None if it had none, and then
            nothing was saved.
    """

    def __init__(self, number: int, step: int | None, output_dir: Path | None) -> None:
        self.signal, self.step, self.output_dir = number, step, output_dir
        kept = "nothing was saved" if output_dir is None else f"a checkpoint is in {output_dir}"
        when = "" if step is None else f" after step {step}"
        super().__init__(f"stopped{when}, {kept}")


class StopRequest:
    """What a run asks after each step."""

    def __init__(self) -> None:
        self.signal: int | None = None


@contextmanager
def stop_request(quiet: bool) -> Iterator[StopRequest]:
    """Notes the first SIGINT or SIGTERM, so that a step is never left half done.

    The second one acts as if nobody had been waiting for it. Outside the main thread, to which
    alone Python delivers signals, nothing is changed.
    """
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request
        return

    def note(number: int, frame: object) -> None:
        if request.signal is not None:
            _restore(handlers)
            signal.raise_signal(number)
        elif not quiet:
            # Not print(): its buffer may be in the middle of a line that this one interrupts.
            with suppress(OSError):
                os.write(2, _NOTICE)
        request.signal = number

    handlers = {n: signal.signal(n, note) for n in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield request
    finally:
        _restore(handlers)


_NOTICE = b"\nstopping after this step (once more to stop at once)\n"


def _restore(handlers: Mapping[signal.Signals, object]) -> None:
    for number, handler in handlers.items():
        signal.signal(number, handler)  # type: ignore[arg-type]
