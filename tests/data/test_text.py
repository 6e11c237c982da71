from pathlib import Path

import pytest

from fastadv.data import Document, read_texts


def test_one_text_a_line(tmp_path: Path) -> None:
    path = tmp_path / "de.txt"
    path.write_bytes("\ufeffein Text\r\n\n \t\n CCAT\tMünchen \n".encode())
    assert read_texts(path) == [Document("ein Text"), Document(" CCAT\tMünchen ")]


def test_a_mark_inside_the_file_is_text(tmp_path: Path) -> None:
    path = tmp_path / "de.txt"
    path.write_text("a\n\ufeffb\n", encoding="utf-8")
    assert read_texts(path) == [Document("a"), Document("\ufeffb")]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"a\nb\xff\n", "de.txt:2: found byte 0xff at position 2, expected UTF-8 text"),
        (b"\n\n", "de.txt: found no text, expected one a line"),
    ],
)
def test_refuses(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "de.txt"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=message):
        read_texts(path)


def test_a_folder_is_not_a_file(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="found a folder, expected a data file"):
        read_texts(tmp_path)
