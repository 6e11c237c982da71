"""Formats told from the content; and what a reader of one does with another."""

from pathlib import Path

import corpora
import pytest

from fastadv.data import (
    DataFile,
    Document,
    as_documents,
    as_sentences,
    as_texts,
    iter_texts,
    read_conll,
    read_documents,
    read_texts,
)
from fastadv.data.formats import recognise
from fastadv.data.source import open_lines

ROWS = corpora.corpus(6, 40)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("CCAT\tShares rose.\n", "documents"),
        ("1\tgood film\n0\tbad film\n", "documents"),
        ("\n \nCCAT\tShares rose.\n", "documents"),
        ("TEXT\tThe text of the label\n", "documents"),
        ("TEXT\tShares rose\n", "documents"),
        ("NET\tO\nNET\tShares rose.\n", "documents"),
        ("NET\tO\nNET\tB-2\n", "columns"),
        ("NET\tVitamin O\nNET\tShares rose.\n", "documents"),
        ("NET\tVitamin O\nNET\tShares rose.\nNET\tgroup O\nNET\tup.\n", "documents"),
        ("EU\tNNP\tI-ORG\nrejects\tVBZ\tO\n", "columns"),
        ("EU\tNNP\tI-ORG\nrejects\tVBZ\nGerman\tJJ\tO\ncall\tNN\tO\n", "columns"),
        ("EU\tB-ORG\n\nrejects\tO\n", "columns"),
        ("EU NNP I-ORG\nThe shares rose.\n", "columns"),
        ("-DOCSTART- -X- O O\n\n", "columns"),
        ("-DOCSTART-\nEU O\n", "columns"),
        ("# NN I-NP O\n", "columns"),
        ("{ -LRB- O\n", "columns"),
        ("[ ( O\n", "columns"),
        ("# sent_id = 1\n# text = a\n1\ta\tO\t-\t-\n", "columns"),
        ("1\ta\tB-OTH\n2\tb\tO\n", "columns"),
        ("# a heading\nCCAT\tShares rose.\n", None),
        ("The shares rose.\nCCAT\tx\n", None),
        ("The shares, they rose, and fell.\n", None),
        ("Text, not much of it, came.\n", None),
        ("text\n", None),
        ("{curly} braces begin this\n", None),
        ("[Music] plays\n", None),
        ('{"text": "a"}\n', "jsonl"),
        ('  { "text": 3\n', "jsonl"),
        ("{\n", "jsonl"),
        ("text,label\na,B\n", "csv"),
        ("id;Sentence;Category\n", "csv"),
        (",text,label\n", "csv"),
        ('"text","label"\n', "csv"),
        ("sentence,content\n", "csv"),
        ("body,topic\n", None),
        ("text\tlabel\n", "tsv"),
        ("category\tcontent\n", "tsv"),
        ("id\ttext\n", "tsv"),
        ("guid\tforeign\tutterance\n", "tsv"),
        ("label\tlabel\n", "documents"),
        ("", None),
        ("\n\n", None),
        ("# only comments\n", None),
    ],
)
def test_recognised(tmp_path: Path, content: str, expected: str | None) -> None:
    path = corpora.write(tmp_path / "file", content)
    lines = open_lines(path)
    assert recognise(lines, path) == expected
    assert "".join(lines.with_ends()) == content, "nothing is lost by looking"


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("a.csv", "csv"), ("A.CSV", "csv"), ("a.csv.gz", "csv"), ("a.jsonl", "jsonl"),
        ("a.ndjson.xz", "jsonl"), ("a.json", "jsonl"), ("a.tsv", "documents"),
        ("a.txt", "documents"), ("csv", "documents"),
    ],
)  # fmt: skip
def test_the_name_decides_where_it_can(tmp_path: Path, name: str, expected: str) -> None:
    path = corpora.write(tmp_path / name, "CCAT\tShares rose.\n")
    assert recognise(open_lines(path), path) == expected


def test_columns_by_name_decide_as_well(tmp_path: Path) -> None:
    for content, expected in (
        ("body,topic\na,B\n", "csv"),
        ("topic\tbody\nB\ta\n", "tsv"),
        ('{"body": "a"}\n', "jsonl"),
        ("a line\n", "csv"),
    ):
        path = corpora.write(tmp_path / "file", content)
        assert recognise(open_lines(path), path, {"text": "body", "label": "topic"}) == expected


@pytest.mark.parametrize("content", ['[{"text": "a"}]', "[\n  {\n", '["a", "b"]\n', "\n[ {\n"])
@pytest.mark.parametrize("name", ["a.json", "a.txt"])
def test_a_json_array_is_refused(tmp_path: Path, name: str, content: str) -> None:
    path = corpora.write(tmp_path / name, content)
    number = 2 if content.startswith("\n") else 1
    with pytest.raises(ValueError) as raised:
        as_documents(path)
    assert str(raised.value) == (
        f"{path}:{number}: found a JSON array, expected one JSON object a line "
        "(jq -c '.[]' FILE writes them so)"
    )


def test_labels_are_dropped_whatever_the_format_and_the_task(tmp_path: Path) -> None:
    for content in (
        "A\tsome text\n",
        "some B-X\ntext I-X\n",
        "# sent_id = 1\n1\tsome\tO\n2\ttext\tO\n",
        "some text\n",
        "text,label\nsome text,A\n",
        "label;text\n;some text\n",
        "id\ttext\tlabel\n1\tsome text\tA\n",
        '{"text": "some text", "label": 3}\n',
        '{"tokens": ["some", "text"], "tags": [3, 4]}\n',
    ):
        path = corpora.write(tmp_path / "file", content)
        (document,) = iter_texts(path, "classification")
        (sentence,) = iter_texts(path, "ner")
        assert (document.text, document.label) == ("some text", None)
        assert (sentence.words, sentence.tags) == (("some", "text"), None)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("EU\tB-ORG\nrejects\tO\n", "found words with tags in columns, expected documents with l"),
        ("EU NNP I-ORG\n", "found words with tags in columns, expected documents with labels: LAB"),
        ("The shares rose.\n", ":1: found 'The shares rose.', expected LABEL<TAB>text"),
        ("", "found no document, expected lines of LABEL<TAB>text"),
    ],
)
def test_no_documents(tmp_path: Path, content: str, message: str) -> None:
    path = corpora.write(tmp_path / "file", content)
    with pytest.raises(ValueError, match=message):
        as_documents(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("text,label\na,B\n", "found CSV, expected words with tags: columns as in CoNLL or Univ"),
        ("text\tlabel\na\tB\n", "found TSV with a header, expected words with tags"),
        ("CCAT\tShares rose.\n", ":1: found the tag 'Shares rose.', expected O, B-TYPE or I-TYPE"),
        ("Shares rose.\n", ":1: found the tag 'rose.', expected"),
        ("Shares\n", ":1: found the one column 'Shares', expected a word first and its tag last"),
        ("", "found no sentence, expected a word and its tag a line"),
    ],
)
def test_no_sentences(tmp_path: Path, content: str, message: str) -> None:
    path = corpora.write(tmp_path / "file", content)
    with pytest.raises(ValueError, match=message):
        as_sentences(path)


@pytest.mark.parametrize(
    ("content", "task", "message"),
    [
        ("CCAT\teins\nzwei\n", "classification", ":2: found 'zwei', expected LABEL<TAB>text"),
        ("CCAT\teins\nzwei\n", "ner", ":2: found 'zwei', expected LABEL<TAB>text"),
        ("EU NNP O\nrejects\n", "ner", ":2: found the one column 'rejects', expected"),
        ("EU NNP O\nrejects\n", "classification", ":2: found the one column 'rejects', expected"),
        ("text,label\na,B\nc\n", "classification", ":3: found 1 field, expected 2: 'text', 'la"),
        ('{"text": "a"}\nb\n', "ner", ":2: found malformed JSON"),
    ],
)
def test_a_later_odd_line_is_refused(tmp_path: Path, content: str, task: str, message: str) -> None:
    path = corpora.write(tmp_path / "file", content)
    with pytest.raises(ValueError, match=f"^{path}{message}"):
        as_texts(path, task)


def test_a_format_that_is_asked_for(tmp_path: Path) -> None:
    path = corpora.write(tmp_path / "a.csv", "A\ttext one\nB\ttext O\n")
    documents = [Document("text one", "A"), Document("text O", "B")]
    assert as_documents(DataFile(path, "documents")) == documents
    assert as_texts(DataFile(path, "lines"), "classification") == [
        Document("A\ttext one"),
        Document("B\ttext O"),
    ]
    with pytest.raises(ValueError, match="found plain text, expected documents with labels"):
        as_documents(DataFile(path, "lines"))
    with pytest.raises(
        ValueError, match=r"found labelled documents \(LABEL<TAB>text\), expected w"
    ):
        as_sentences(DataFile(path, "documents"))
    with pytest.raises(ValueError, match="csv:1: found the tag 'text one'"):
        as_texts(DataFile(path, "columns"), "ner")


def test_readers_of_one_format(tmp_path: Path) -> None:
    path = corpora.write(tmp_path / "a.jsonl", "A\tb O\n")
    assert read_documents(path) == read_documents(DataFile(path)) == [Document("b O", "A")]
    assert read_texts(DataFile(path, "lines")) == [Document("A\tb O")]
    with pytest.raises(ValueError, match="jsonl:1: found the tag 'b O', expected O, B-TYPE or I"):
        read_conll(path)
    with pytest.raises(ValueError, match="jsonl: found the format 'lines', expected 'documents'"):
        read_documents(DataFile(path, "lines"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"format": "xml"}, "found the format 'xml', expected 'documents', .* or 'jsonl'"),
        ({"encoding": "utf8"}, "found the encoding 'utf8', expected 'utf-8' or 'latin-1'"),
        ({"columns": {"body": "text"}}, "found the field 'body', expected 'text', 'label', "),
        ({"columns": {"text": 3}}, "found the column 3 for 'text', expected its name"),
        ({"columns": {"text": "a"}, "format": "lines"}, "found columns for the format 'lines'"),
        ({"path": 3}, "found a path of type int, expected a string"),
        ({"path": "hf:a/b", "encoding": "utf-8"}, "hf:a/b: found a format or an encoding"),
    ],
)
def test_options_that_are_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DataFile(**{"path": "x", **options})  # type: ignore[arg-type]
