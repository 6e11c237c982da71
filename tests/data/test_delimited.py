"""CSV and TSV with a header."""

import csv
import io
import random
from pathlib import Path

import corpora
import pytest

from fastadv.data import DataFile, Document, as_documents, as_texts


def read(folder: Path, content: str | bytes, **options: object) -> list[Document]:
    path = corpora.write(folder / "file", content)
    return as_documents(DataFile(path, **options))  # type: ignore[arg-type]


def refusal(folder: Path, content: str | bytes, **options: object) -> str:
    with pytest.raises(ValueError) as raised:
        read(folder, content, **options)
    message = str(raised.value)
    assert len(message.splitlines()) == 1
    return message.removeprefix(str(folder))


def test_quotes_and_line_ends_within_them(tmp_path: Path) -> None:
    content = (
        'text,label\n"one, two",A\n"a ""quote""",B\n\n"two\nlines\n\nthree",A\r\nb "c" d, B \n"",A'
    )
    found = read(tmp_path, content)
    assert found == [
        Document("one, two", "A"),
        Document('a "quote"', "B"),
        Document("two\nlines\n\nthree", "A"),
        Document('b "c" d', "B"),
        Document("", "A"),
    ]
    places = [(d.where or "").rpartition(":")[2] for d in found]
    assert places == ["2", "3", "5", "9", "10"]


@pytest.mark.parametrize(
    "content",
    [
        "text,label\na b,X\n",
        "label,text\nX,a b\n",
        "Label , TEXT\nX,a b\n",
        "text;label\na b;X\n",
        '"id";"text";"label"\n"1";"a b";"X"\n',
        "id,sentence,category\n1,a b,X\n",
        "utterance\tintent\na b\tX\n",
        ",text,label\n0,a b,X\n",
        "text,label,category,sentence\na b,X,Y,Z\n",
        "\ufefftext,label\r\na b,X\r\n",
        "\n\ntext\tlabel\na b\tX",
        "\ntext\tlabel\n\n \na b\tX\n\n",
    ],
)
def test_headers(tmp_path: Path, content: str) -> None:
    assert read(tmp_path, content) == [Document("a b", "X")]
    assert as_texts(tmp_path / "file", "classification") == [Document("a b")]


def test_columns_by_name(tmp_path: Path) -> None:
    columns = {"text": "body", "label": "topic"}
    for content in ("body,text,topic\na,b,C\n", "topic;body\nC;a\n", "topic\tbody\nC\ta\n"):
        assert read(tmp_path, content, columns=columns) == [Document("a", "C")]
        assert as_texts(DataFile(tmp_path / "file", columns=columns), "classification") == [
            Document("a")
        ]
    message = refusal(tmp_path, "text,label\na,B\n", columns=columns)
    assert message.startswith("/file:1: found the columns 'text', 'label', expected 'body' for te")


def test_unlabelled_needs_no_label(tmp_path: Path) -> None:
    path = corpora.write(tmp_path / "a.csv", "text,topic,category\na,B,C\n")
    assert as_texts(path, "classification") == [Document("a")]
    with pytest.raises(ValueError, match="'topic', 'category', expected 'label'"):
        as_documents(path)


def test_one_column(tmp_path: Path) -> None:
    path = corpora.write(tmp_path / "a.csv", 'text\na\n\n"b, c"\n')
    assert as_texts(path, "classification") == [Document("a"), Document("b, c")]


REMEDY = '(columns={"text": NAME} says which it is, on the command line --columns text=NAME)'


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("body,topic\na,B\n", f":1: found the columns 'body', 'topic', expected 'text' {REMEDY}"),
        ("text,id\na,1\n", ":1: found the columns 'text', 'id', expected 'label' (columns="),
        ("content,sentence,label\n", ":1: found the columns 'content', 'sentence', exp"),
        ("text,label,label\na,B,C\n", ":1: found the columns 'text', 'label', 'label', expected d"),
        ("text,label\na,B\nc\n", ":3: found 1 field, expected 2: 'text', 'label'"),
        ("text,label\na,B,\n", ":2: found 3 fields, expected 2: 'text', 'label'"),
        ('text,label\n"a\nb",B\n"c\nd"\n', ":4: found 1 field, expected 2"),
        ('text,label\na,B\n"c,D\ne,F\n', ":3: found a malformed row (unexpected end of data), ex"),
        ('text,label\n"a" b,C\n', ":2: found a malformed row (',' expected after '\"'), expected"),
        ("text,label\na\rb,C\n", ":2: found a malformed row (new-line character seen in unquoted"),
        ("text,label\na,\n", ":2: found an empty label, expected the name of a class"),
        ("text,label\n", ": found no row below the names, expected a text a row"),
        ("", ": found no line, expected one that names the columns"),
        ("\n\n", ": found no line, expected one that names the columns"),
        (b"text,label\na\0,B\n", ":2: found a NUL byte at position 2, expected text"),
        (b"text,label\na,B\n\xff,B\n", ":3: found byte 0xff at position 1, expected UTF-8 text"),
    ],
)
def test_refuses(tmp_path: Path, content: str | bytes, message: str) -> None:
    assert refusal(tmp_path, content, format="csv").startswith("/file" + message)


def test_a_quote_that_swallows_rows_is_refused_in_tsv(tmp_path: Path) -> None:
    content = 'text\tlabel\n"a\tA\nb"\tB\n'
    assert refusal(tmp_path, content).startswith(
        "/file:2: found a field in quotes over 2 lines, each of which is a whole row ('\"a\\tA\\n')"
    )
    assert read(tmp_path, 'text\tlabel\n"a\n\tb"\tB\n') == [Document("a\n\tb", "B")]


def test_the_limit_of_the_csv_module_is_lent_only(tmp_path: Path) -> None:
    long = "x" * 300_000
    before = csv.field_size_limit()
    assert before < len(long)
    assert read(tmp_path, f'text,label\n"{long}",A\nb,B\n') == [
        Document(long, "A"),
        Document("b", "B"),
    ]
    assert csv.field_size_limit() == before
    texts = iter(as_texts(tmp_path / "file", "classification"))
    next(texts)
    assert csv.field_size_limit() == before
    endless = 'text,label\n"' + "x" * (1 << 20) + "\n"
    message = refusal(tmp_path, endless + ("y" * (1 << 20) + "\n") * 17)
    assert message.startswith("/file:2: found a malformed row (field larger than field limit")
    assert csv.field_size_limit() == before


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
@pytest.mark.parametrize("quoting", [csv.QUOTE_MINIMAL, csv.QUOTE_ALL])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_what_the_csv_module_writes_is_read(
    tmp_path: Path, delimiter: str, quoting: int, end: str
) -> None:
    rng = random.Random(f"{delimiter}{quoting}{end}")
    parts = ["a", "é", ",", ";", '"', "\n", " ", "\t", "text", "東", "'", "\r\n", "\\"]
    rows = []
    for _ in range(300):
        text = "".join(rng.choices(parts, k=rng.randrange(12)))
        # What the csv module writes without quotes, and no TSV may hold: rows within a field.
        text = text.replace("\t", " ") if delimiter == "\t" else text
        rows.append((text, rng.choice("AB")))
    stream = io.StringIO()
    writer = csv.writer(stream, delimiter=delimiter, quoting=quoting, lineterminator=end)  # type: ignore[arg-type]
    writer.writerows([("text", "label"), *rows])
    found = read(tmp_path, stream.getvalue().encode())
    assert found == [Document(*row) for row in rows]
