"""Text files, compressed or not, and what is wrong with them."""

from __future__ import annotations

import bz2
import gzip
import lzma
import re
from pathlib import Path

import numpy as np
import pytest

from fastadv.pretraining.text_files import TextFiles

PACK = {
    ".txt": bytes,
    ".gz": gzip.compress,
    ".bz2": bz2.compress,
    ".xz": lzma.compress,
}
COMPRESSED = [".gz", ".bz2", ".xz"]


def written(folder: Path, suffix: str, content: bytes) -> Path:
    path = folder / f"text{suffix}"
    path.write_bytes(PACK[suffix](content))
    return path


def read(*paths: Path | str) -> list[str]:
    return list(TextFiles({"de": paths})["de"])


def lines(count: int) -> list[str]:
    """Of 64 letters each without a pattern, so that compression leaves much of them."""
    rng = np.random.default_rng(0)
    return [rng.bytes(32).hex() for _ in range(count)]


@pytest.mark.parametrize("suffix", PACK)
@pytest.mark.parametrize(
    "content",
    [
        "eins zwei\nдрей\n我 四\n",
        "eins zwei\nдрей\n我 四",
        "\ufeffeins zwei\r\nдрей\r\n我 四\r\n",
        "\n \t\n  eins zwei \n\n\r\nдрей\n\u3000\n我 四\n\n",
    ],
    ids=["plain", "no end", "mark and CRLF", "empty lines"],
)
def test_paragraphs(tmp_path: Path, suffix: str, content: str) -> None:
    path = written(tmp_path, suffix, content.encode())
    assert read(path) == ["eins zwei", "дрей", "我 四"]


def test_a_mark_elsewhere_is_text(tmp_path: Path) -> None:
    path = written(tmp_path, ".txt", "a\n\ufeffb\n".encode())
    assert read(path) == ["a", "\ufeffb"]


def test_files_one_after_the_other_and_again(tmp_path: Path) -> None:
    first, second = tmp_path / "1.txt", tmp_path / "2.xz"
    first.write_text("a\nb", encoding="utf-8")
    second.write_bytes(lzma.compress(b"\xef\xbb\xbfc\n"))
    third = tmp_path / "3.txt"
    third.write_bytes(b"\n")
    files = TextFiles({"en": [str(first), third, second], "de": [second]})
    assert list(files) == ["en", "de"] and len(files) == 2
    english = files["en"]
    assert list(english) == ["a", "b", "c"]
    assert list(english) == list(files["en"]) == ["a", "b", "c"]
    assert {name: list(found) for name, found in files.items()}["de"] == ["c"]
    with pytest.raises(KeyError):
        files["fr"]


def test_two_readers_do_not_disturb_each_other(tmp_path: Path) -> None:
    found = TextFiles({"de": [written(tmp_path, ".gz", b"a\nb\n")]})["de"]
    assert list(zip(found, found, strict=True)) == [("a", "a"), ("b", "b")]


@pytest.mark.parametrize("suffix", PACK)
def test_bytes_that_are_no_utf8(tmp_path: Path, suffix: str) -> None:
    path = written(tmp_path, suffix, "gut\n\nschön\n".encode("latin-1"))
    with pytest.raises(ValueError) as error:
        read(path)
    assert str(error.value) == f"{path}:3: found byte 0xf6, expected UTF-8"


def test_bytes_that_are_no_utf8_after_a_mark(tmp_path: Path) -> None:
    path = written(tmp_path, ".txt", b"\xef\xbb\xbfab\xffc\n")
    with pytest.raises(ValueError) as error:
        read(path)
    assert str(error.value) == f"{path}:1: found byte 0xff, expected UTF-8"


@pytest.mark.parametrize("suffix", COMPRESSED)
@pytest.mark.parametrize("share", [0.02, 0.5, 0.9, 0.9999])
def test_truncated(tmp_path: Path, suffix: str, share: float) -> None:
    expected = lines(20_000)
    path = written(tmp_path, suffix, "\n".join(expected).encode())
    raw = path.read_bytes()
    path.write_bytes(raw[: int(share * len(raw))])
    found = []
    with pytest.raises(ValueError) as error:
        for paragraph in TextFiles({"de": [path]})["de"]:
            found.append(paragraph)
    # What was read before is right, and the line named is the one after it.
    assert found == expected[: len(found)]
    # Less than one block of a .bz2 file, 900,000 bytes, cannot be read.
    assert len(found) > 0 or share == 0.02 or (suffix == ".bz2" and share == 0.5)
    pattern = re.escape(f"{path}:{len(found) + 1}: expected an intact {suffix} file: ") + "[^\n]+"
    assert re.fullmatch(pattern, str(error.value))


@pytest.mark.parametrize("suffix", COMPRESSED)
def test_damaged(tmp_path: Path, suffix: str) -> None:
    """Every byte of a small file, one at a time: what comes is right or refused."""
    expected = lines(4)
    path = written(tmp_path, suffix, "\n".join(expected).encode())
    raw = path.read_bytes()
    refused = 0
    for place in range(len(raw)):
        path.write_bytes(raw[:place] + bytes([raw[place] ^ 0xFF]) + raw[place + 1 :])
        try:
            assert read(path) == expected
        except ValueError as error:
            # A .gz file says at its end only that what came before was wrong, if it was UTF-8.
            wrong = rf"expected an intact \{suffix} file: .+|found byte 0x.., expected UTF-8"
            assert re.fullmatch(re.escape(str(path)) + rf":\d+: ({wrong})", str(error)), error
            refused += 1
    # All but some of the first bytes of a .gz file, a time among them, are checked.
    assert refused >= len(raw) - 10


@pytest.mark.parametrize("suffix", COMPRESSED)
def test_another_format(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"text{suffix}"
    path.write_bytes(b"just text\n")
    with pytest.raises(ValueError, match=rf"text\{suffix}:1: expected an intact \{suffix} file"):
        read(path)


@pytest.mark.parametrize("suffix", PACK)
def test_a_missing_file(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"nowhere{suffix}"
    with pytest.raises(FileNotFoundError, match=path.name):
        read(path)


def test_a_folder(tmp_path: Path) -> None:
    with pytest.raises(OSError):
        read(tmp_path)


def test_a_language_without_text(tmp_path: Path) -> None:
    one, other = written(tmp_path, ".txt", b"\n \r\n"), written(tmp_path, ".gz", b"")
    with pytest.raises(ValueError) as error:
        read(one, other)
    assert str(error.value) == f"{one}, {other}: found no text of de, expected some"
