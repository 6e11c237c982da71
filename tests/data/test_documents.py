from pathlib import Path

import pytest
from data_helpers import shared_data

from fastadv.data import Document, read_documents
from fastadv.data.documents import decode_bytes_literal


def write(folder: Path, content: str | bytes) -> Path:
    path = folder / "english.train.1000"
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def test_labels_and_texts(tmp_path: Path) -> None:
    path = write(tmp_path, "CCAT\tShares rose.\nMCAT\t日本語 text\n")
    expected = [Document("Shares rose.", "CCAT"), Document("日本語 text", "MCAT")]
    assert read_documents(path) == expected
    assert read_documents(str(path)) == expected


@pytest.mark.parametrize(
    "content",
    [
        "A\tx y\nB\tz",
        "A\tx y\nB\tz\n\n\n",
        "\nA\tx y\n  \nB\tz\n",
        "A\tx y\r\nB\tz\r\n",
        "\ufeffA\tx y\nB\tz\n",
    ],
    ids=["no end", "blank at the end", "blank between", "crlf", "byte order mark"],
)
def test_forms_of_a_file(tmp_path: Path, content: str) -> None:
    assert read_documents(write(tmp_path, content)) == [Document("x y", "A"), Document("z", "B")]


def test_only_line_feeds_end_a_line(tmp_path: Path) -> None:
    text = "a\x0bb\x0cc\x85d\u2028e\rf"
    assert read_documents(write(tmp_path, f"A\t{text}\n")) == [Document(text, "A")]


def test_further_tabs_and_empty_texts_are_text(tmp_path: Path) -> None:
    path = write(tmp_path, "A\tx\ty\nB\t\n")
    assert read_documents(path) == [Document("x\ty", "A"), Document("", "B")]


def test_bytes_literals(tmp_path: Path) -> None:
    texts = ["München", "it's", 'a "quote" and it\'s', "back\\slash", "tab\tand\nline", "東京"]
    lines = "".join(f"MCAT\t{text.encode()!r}\n" for text in texts)
    assert r"M\xc3\xbcnchen" in lines and 'b"it\'s"' in lines
    assert [d.text for d in read_documents(write(tmp_path, lines))] == texts


@pytest.mark.parametrize("text", ["b'is a letter", "b' and 'b'", "'quoted'", "b", "b'", "big 'b'"])
def test_prose_is_not_a_bytes_literal(text: str) -> None:
    assert decode_bytes_literal(text) == text


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"A\tx\nno tab here\n", r"1000:2: found 'no tab here', expected LABEL<TAB>text"),
        (b"\tx\n", r"1000:1: found '\\tx', expected LABEL<TAB>text"),
        (b"two words\tx\n", "1000:1: .*expected LABEL<TAB>text"),
        (b"A\tx\n\nB\tM\xfcnchen\n", "1000:3: found byte 0xfc at position 4, expected UTF-8 text"),
        (b"A\tx\nB\tb'M\\xfcnchen'\n", "1000:2: found a bytes literal that is not UTF-8"),
        (b"A\tx\nB\tb'M\\xc3\\xbcnch\n", "1000:2: found a bytes literal that is damaged"),
        (b"A\tb'M\\xc3\\xb nchen'\n", "1000:1: found a bytes literal that is damaged"),
        (b"\n", "1000: found no document, expected lines of LABEL<TAB>text"),
        (b"", "1000: found no document"),
    ],
)
def test_refuses(tmp_path: Path, content: bytes, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_documents(write(tmp_path, content))


def test_long_lines_are_cut_in_the_message(tmp_path: Path) -> None:
    with pytest.raises(ValueError) as raised:
        read_documents(write(tmp_path, "word " * 1000))
    assert len(str(raised.value).removeprefix(str(tmp_path))) < 150


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="nowhere: found no file"):
        read_documents(tmp_path / "nowhere")


@pytest.mark.parametrize(("name", "count"), [("en.train", 4606), ("ja.test", 375), ("zh.dev", 26)])
def test_real_documents(name: str, count: int) -> None:
    documents = read_documents(shared_data("debian_topics", name))
    assert len(documents) == count
    assert {d.label for d in documents} == {"GAMES", "MEDIA", "NET", "SCIENCE"}
    assert all(d.text.strip() for d in documents)
