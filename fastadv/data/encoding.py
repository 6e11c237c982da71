"""From bytes to text: UTF-8 or latin-1, and never the one read as the other."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable
from pathlib import Path

_OFFICIAL_NAME = re.compile(r"(deu|esp|ned)\.")
# A character of two to four bytes in UTF-8; or a byte that is a letter or sign in other encodings
# (0x80 to 0x9f), where ISO 8859-1 has control characters that no text holds.
_NOT_LATIN_1 = re.compile(
    rb"[\x80-\x9f]|[\xc2-\xdf][\xa0-\xbf]|[\xe0-\xef][\xa0-\xbf]{2}|[\xf0-\xf4][\xa0-\xbf]{3}"
)
_UTF_16 = (b"\xff\xfe", b"\xfe\xff")
_HINT = 'UTF-8 text (or encoding="latin-1", on the command line --encoding latin-1)'


class NotText(ValueError):
    """Bytes that are not text in the encoding asked for: what was found, and what expected."""

    def __init__(self, found: str, expected: str) -> None:
        super().__init__(f"found {found}, expected {expected}")
        self.found, self.expected = found, expected


def line_decoder(encoding: str) -> Callable[[bytes], str]:
    """A function from the lines of one file, in their order, to text.

    It raises `NotText` for a line that is not UTF-8 or holds a NUL byte. Under "latin-1" it raises
    it as soon as more of the lines with a byte above 127 are UTF-8 than are not: every byte is a
    letter of latin-1, so only their order tells.
    """
    decode = _Latin1() if encoding == "latin-1" else _utf_8
    first = True

    def decoded(raw: bytes) -> str:
        nonlocal first
        if first:
            first = False
            if raw.startswith(_UTF_16):
                raise NotText("a UTF-16 byte order mark", "UTF-8 text")
            if encoding == "utf-8":
                raw = raw.removeprefix(b"\xef\xbb\xbf")
        if b"\0" in raw:
            raise NotText(f"a NUL byte at position {raw.index(0) + 1}", "text")
        return decode(raw)

    return decoded


def is_latin_1_by_convention(path: str | os.PathLike[str], lines: Iterable[bytes]) -> bool:
    """Whether a file has a CoNLL corpus's own name and its bytes can only be latin-1.

    A file of which even one character is UTF-8 is UTF-8, perhaps damaged.
    """
    if not _OFFICIAL_NAME.match(Path(path).name):
        return False
    high = False
    for raw in lines:
        if not raw.isascii():
            if _NOT_LATIN_1.search(raw):
                return False
            high = True
    return high


def _utf_8(raw: bytes) -> str:
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        found = f"byte 0x{raw[error.start]:02x} at position {error.start + 1}"
        raise NotText(found, _HINT) from None


class _Latin1:
    """Decodes latin-1 and keeps count of what looks like UTF-8."""

    def __init__(self) -> None:
        self.balance = 0

    def __call__(self, raw: bytes) -> str:
        if not raw.isascii():
            self.balance += 1 if _is_utf_8(raw) else -1
            if self.balance > 0:
                raise NotText("UTF-8 text", 'latin-1 as asked for (leave encoding="latin-1" out)')
        return raw.decode("latin-1")


def _is_utf_8(raw: bytes) -> bool:
    try:
        raw.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True
