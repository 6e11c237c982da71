"""Plain text files of several languages, compressed or not."""

from __future__ import annotations

import bz2
import codecs
import gzip
import lzma
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any
from zlib import error as zlib_error

_OPENERS: dict[str, Any] = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}
_DAMAGED = (EOFError, OSError, lzma.LZMAError, zlib_error)


class TextFiles(Mapping[str, "Paragraphs"]):
    """Paragraphs by language, read anew in each iteration.

    Args:
        files: By language, files of UTF-8 text, one paragraph per line; also .gz, .bz2 and .xz.
    """

    def __init__(self, files: Mapping[str, Sequence[str | Path]]) -> None:
        self._files = {name: [Path(p) for p in paths] for name, paths in files.items()}

    def __getitem__(self, language: str) -> Paragraphs:
        return Paragraphs(language, self._files[language])

    def __iter__(self) -> Iterator[str]:
        return iter(self._files)

    def __len__(self) -> int:
        return len(self._files)


class Paragraphs:
    """Lines of some files that are not empty, without the white space around them.

    Iteration raises ValueError, "file:line: ...", for bytes that are not UTF-8, for damage in a
    compressed file, and where no file holds any text; OSError where a file cannot be opened.
    """

    def __init__(self, language: str, paths: Sequence[Path]) -> None:
        self.language, self.paths = language, paths

    def __iter__(self) -> Iterator[str]:
        found = False
        for path in self.paths:
            for paragraph in _lines(path):
                found = True
                yield paragraph
        if not found:
            names = ", ".join(map(str, self.paths))
            raise ValueError(f"{names}: found no text of {self.language}, expected some")


def _lines(path: Path) -> Iterator[str]:
    opener = _OPENERS.get(path.suffix)
    with path.open("rb") if opener is None else opener(path, "rb") as file:
        for number, raw in _numbered(path, file, opener is not None):
            if number == 1:
                raw = raw.removeprefix(codecs.BOM_UTF8)
            try:
                line = raw.decode().strip()
            except UnicodeDecodeError as error:
                raise ValueError(
                    f"{path}:{number}: found byte 0x{raw[error.start]:02x}, expected UTF-8"
                ) from error
            if line:
                yield line


def _numbered(path: Path, file: IO[bytes], compressed: bool) -> Iterator[tuple[int, bytes]]:
    number = 0
    while True:
        try:
            raw = file.readline()
        except _DAMAGED as error:
            if not compressed:
                raise
            raise ValueError(
                f"{path}:{number + 1}: expected an intact {path.suffix} file: {error}"
            ) from error
        if not raw:
            return
        number += 1
        yield number, raw
