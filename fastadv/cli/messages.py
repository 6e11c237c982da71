"""What reaches standard error: our own plain lines, and nothing from other libraries."""

from __future__ import annotations

import logging
import os
import re
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

_UNEXPECTED = re.compile(r"Expected an? (?P<expected>.+?)\. Got value: (?P<found>.*)")
_UNION = re.compile(
    r"(?P<option>--[\w.]+): Does not validate against any of the Union subtypes "
    r"Subtypes: \[(?P<kinds>[^\]]*)\] Errors: .* Given value: (?P<found>.*)"
)


@contextmanager
def only_our_messages(speaker: str) -> Iterator[logging.Handler]:
    """Sends the library's log to standard error as "SPEAKER: line", and other logs nowhere.

    Yields:
        The handler, whose level decides what is shown: INFO and above unless it is raised.
    """
    handler = logging.StreamHandler(sys.stderr)
    handler.setLevel(logging.INFO)
    handler.setFormatter(logging.Formatter(f"{speaker}: %(message)s"))
    # With a handler at the root, Python's last resort does not print other libraries' warnings.
    silence = logging.NullHandler()
    ours, root = logging.getLogger("fastadv"), logging.getLogger()
    level = ours.level
    ours.addHandler(handler)
    ours.setLevel(logging.INFO)
    root.addHandler(silence)
    try:
        with warnings.catch_warnings():
            if not sys.warnoptions:
                warnings.simplefilter("ignore")
            yield handler
    finally:
        ours.removeHandler(handler)
        ours.setLevel(level)
        root.removeHandler(silence)


def hush(quiet: bool = False) -> None:
    """Silences bars and warnings of libraries that load models; downloads show on a terminal."""
    from huggingface_hub.utils import disable_progress_bars
    from huggingface_hub.utils import logging as hub_logging
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()
    hub_logging.set_verbosity_error()
    if quiet or not sys.stderr.isatty():
        disable_progress_bars()
        os.environ["HF_DATASETS_DISABLE_PROGRESS_BARS"] = "1"


def one_line(error: BaseException) -> str:
    """An error's message as one line, whatever wrote it."""
    if isinstance(error, OSError) and error.strerror and error.errno is not None:
        names = [os.fsdecode(n) for n in (error.filename, error.filename2) if n is not None]
        return f"{' and '.join(names)}: {error.strerror}" if names else error.strerror
    if isinstance(error, MemoryError) and not str(error):
        return "out of memory"
    return re.sub(r"\[Errno \d+\] ", "", " ".join(str(error).split())) or type(error).__name__


def usage_mistake(error: BaseException) -> str:
    """jsonargparse's message in our form: "--option: found X, expected Y"."""
    text = " ".join(str(error).split())
    text = re.sub(r'Parser key "([^"]*)": ?', r"--\1: ", text)
    text = re.sub(r"<class '(\w+)'>", r"\1", text)
    missing = re.match(r"the following arguments are required: (.*)", text)
    if missing:
        names = [name.rpartition(".")[2] for name in missing[1].split(", ")]
        return f"found no {' and no '.join(f'--{name}' for name in names)}, expected a value"
    union = _UNION.fullmatch(text)
    if union:
        kinds = ["nothing" if kind == "NoneType" else kind for kind in union["kinds"].split(", ")]
        return f"{union['option']}: found {union['found']}, expected {' or '.join(kinds)}"
    return _UNEXPECTED.sub(r"found \g<found>, expected \g<expected>", text)
