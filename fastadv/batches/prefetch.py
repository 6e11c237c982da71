"""Work done ahead on another thread."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Generic, TypeVar

Item = TypeVar("Item")


class Prefetch(Generic[Item]):
    """Calls a function on its own thread, a few calls ahead of the results that are taken.

    Results come in order. An exception of the function, including StopIteration at its end, is
    raised in place of its result. This is a context manager: when it exits, the thread has ended.

    Args:
        make: The function; its calls never overlap.
        ahead: The most results that are kept waiting.
    """

    def __init__(self, make: Callable[[], Item], ahead: int = 2) -> None:
        self._make = make
        self._waiting: queue.Queue[tuple[Item | None, BaseException | None]] = queue.Queue(ahead)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._work, name="prefetch", daemon=True)
        self._thread.start()

    def __enter__(self) -> Prefetch[Item]:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stop.set()
        while self._thread.is_alive():
            # The thread may be waiting for room in the queue.
            self._drain()
            self._thread.join(0.01)
        self._drain()

    def __iter__(self) -> Iterator[Item]:
        return self

    def __next__(self) -> Item:
        if self._stop.is_set():
            raise StopIteration
        item, error = self._waiting.get()
        if error is not None:
            self._stop.set()
            raise error
        return item  # type: ignore[return-value]

    def _work(self) -> None:
        while not self._stop.is_set():
            try:
                found: tuple[Item | None, BaseException | None] = (self._make(), None)
            except BaseException as error:
                found = (None, error)
            self._waiting.put(found)
            if found[1] is not None:
                return

    def _drain(self) -> None:
        while True:
            try:
                self._waiting.get_nowait()
            except queue.Empty:
                return
