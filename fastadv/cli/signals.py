"""SIGINT and SIGTERM as exceptions, so that what is half done is cleaned up."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import NoReturn


class Interrupted(KeyboardInterrupt):
    """A signal came.

    Attributes:
        signal: Its number.
    """

    def __init__(self, number: int) -> None:
        super().__init__("stopped")
        self.signal = number


@contextmanager
def raised_signals() -> Iterator[None]:
    """Inside, the first SIGINT or SIGTERM raises `Interrupted`; a second one ends the process."""
    if threading.current_thread() is not threading.main_thread():
        # Only the main thread may set handlers in Python.
        yield
        return
    before = {
        number: signal.getsignal(number)
        for number in (signal.SIGINT, signal.SIGTERM)
        # A shell starts background jobs with SIGINT ignored, and that must stay so.
        if signal.getsignal(number) is not signal.SIG_IGN
    }

    def interrupt(number: int, frame: FrameType | None) -> NoReturn:
        for either in before:
            signal.signal(either, signal.SIG_DFL)
        raise Interrupted(number)

    try:
        for number in before:
            signal.signal(number, interrupt)
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
