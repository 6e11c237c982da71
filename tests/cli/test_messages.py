"""What other libraries may say, and how errors become one line."""

from __future__ import annotations

import errno
import logging
import warnings

import pytest
from transformers.utils import logging as transformers_logging

from fastadv.cli.messages import hush, one_line, only_our_messages


def test_bars_of_transformers_are_off_on_a_terminal_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    transformers_logging.enable_progress_bar()
    hush()
    assert not transformers_logging.is_progress_bar_enabled()


def test_only_our_log_is_heard(capsys: pytest.CaptureFixture[str]) -> None:
    with only_our_messages("fastadv train"):
        logging.getLogger("matplotlib").warning("building the font cache")
        warnings.warn("a library is getting old", UserWarning, stacklevel=1)
        logging.getLogger("fastadv.data").info("deu.train: read as latin-1")
    assert capsys.readouterr().err == "fastadv train: deu.train: read as latin-1\n"


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (ValueError("two\n  lines"), "two lines"),
        (OSError(errno.ENOSPC, "No space left on device", "a b"), "a b: No space left on device"),
        (OSError(errno.ENOSPC, "No space left on device"), "No space left on device"),
        (
            OSError("x: [Errno 28] No space left on device; kept"),
            "x: No space left on device; kept",
        ),
        (MemoryError(), "out of memory"),
        (RuntimeError(), "RuntimeError"),
    ],
)
def test_one_line(error: Exception, line: str) -> None:
    assert one_line(error) == line
