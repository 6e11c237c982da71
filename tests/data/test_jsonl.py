"""JSON Lines with named fields."""

import json
from pathlib import Path

import corpora
import pytest

from fastadv.data import DataFile, Document, Sentence, as_documents, as_sentences, as_texts


def refusal(path: Path, read: object = as_documents) -> str:
    assert callable(read)
    with pytest.raises(ValueError) as raised:
        read(path)
    message = str(raised.value)
    assert len(message.splitlines()) == 1
    return message.removeprefix(str(path))


def test_documents(tmp_path: Path) -> None:
    content = (
        '\n{"text": "a\\nb", "label": "A"}\n \n'
        '  {"label":"2","text":"\\ud83d\\ude00","n":[1e9]}\r\n'
        '{"sentence": "c", "Topic": "D"}'
    )
    path = corpora.write(tmp_path / "file", content)
    found = as_documents(path)
    assert found == [Document("a\nb", "A"), Document("😀", "2"), Document("c", "D")]
    assert [d.where for d in found] == [f"{path}:{n}" for n in (2, 4, 5)]
    assert as_texts(path, "classification") == [Document(d.text) for d in found]
    assert as_texts(path, "ner")[0] == Sentence(("a", "b"))


def test_sentences(tmp_path: Path) -> None:
    lines = [
        {"tokens": ["EU", "rejects"], "tags": ["I-ORG", "O"], "text": "EU rejects it"},
        {"words": ["a", "b"], "ner_tags": ["B-X", "I-X"], "pos_tags": [1, 2]},
        {"tokens": [], "tags": []},
    ]
    path = corpora.write(tmp_path / "file", "\n".join(map(json.dumps, lines)))
    found = as_sentences(path)
    assert found == [
        Sentence(("EU", "rejects"), ("B-ORG", "O")),
        Sentence(("a", "b"), ("B-X", "I-X")),
        Sentence((), ()),
    ]
    assert as_texts(path, "ner") == [Sentence(s.words) for s in found]
    texts = [d.text for d in as_texts(path, "classification")]
    assert texts == ["EU rejects it", "a b", ""]


def test_columns_by_name(tmp_path: Path) -> None:
    path = corpora.write(tmp_path / "file", '{"text": "x", "body": "a", "kind": "B"}\n')
    file = DataFile(path, columns={"text": "body", "label": "kind"})
    assert as_documents(file) == [Document("a", "B")]
    assert as_texts(file, "ner") == [Sentence(("a",))]
    path = corpora.write(tmp_path / "file", '{"w": ["a"], "t": ["O"]}\n')
    assert as_sentences(DataFile(path, columns={"tokens": "w", "tags": "t"})) == [
        Sentence(("a",), ("O",))
    ]


def test_a_blank_file_by_its_name(tmp_path: Path) -> None:
    path = corpora.write(tmp_path / "a.jsonl", "\n")
    assert refusal(path) == ": found no object, expected one JSON object a line"


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"text": "a"}', "found no label, expected the name of a class"),
        ('{"text": "a", "label": null}', "found no label, expected the name of a class"),
        ('{"text": "a", "label": " "}', "found an empty label, expected the name of a class"),
        ('{"text": "a", "label": 2}', "found the label 2 of type int, expected the name of a cl"),
        ('{"text": "a", "label": 2.5}', "found the label 2.5 of type float, expected the name"),
        ('{"text": "a", "label": true}', "found the label True of type bool, expected the name"),
        ('{"text": null, "label": "A"}', "found a text of type NoneType, expected a string"),
        ('{"text": ["a"], "label": "A"}', "found a text of type list, expected a string"),
        ('{"text": "\\ud800", "label": "A"}', "found a text with half a surrogate pair at charact"),
        ('{"body": "a", "label": "A"}', "found the columns 'body', 'label', expected 'text' (colu"),
        ('{"content": "a", "document": "b"}', "found the columns 'content', 'document', expected"),
        ('{"text": "a", "text": "b"}', "found the key 'text' twice, expected it once"),
        ('{"text": "a", "label": NaN}', "found NaN, expected JSON, which has no such number"),
        ('{"text": "a", "x": -Infinity}', "found -Infinity, expected JSON"),
        ('{"text": "a"', "found malformed JSON (Expecting ',' delimiter at character 13)"),
        ('{"text": "a"} {}', "found malformed JSON (Extra data at character 15)"),
        ('{"text": "a\tb"}', "found malformed JSON (Invalid control character at character 12)"),
        ('["a"]', "found a JSON list, expected one JSON object a line"),
        ("3", "found a JSON int, expected one JSON object a line"),
        ("null", "found a JSON NoneType, expected one JSON object a line"),
        ('{"a": ' + "[" * 100_000, "found JSON nested too deep, expected one JSON object a line"),
        ('{"a": ' + "1" * 5000 + "}", "found a number of 5000 digits, expected one JSON"),
    ],
)
def test_refuses_documents(tmp_path: Path, line: str, message: str) -> None:
    path = corpora.write(tmp_path / "file", f'{{"text": "a", "label": "A"}}\n\n{line}\n')
    assert refusal(path).startswith(f":3: {message}")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"tokens": ["a"]}', "found no tags, expected one a word"),
        ('{"tokens": ["a"], "tags": [3]}', "found the tags [3], expected their names, such as 'B-"),
        ('{"tokens": ["a"], "tags": ["X"]}', "found the tag 'X', expected O, B-TYPE or I-TYPE"),
        ('{"tokens": ["a"], "tags": ["B-X Y"]}', "found the tag 'B-X Y', expected O, B-TYPE or I"),
        ('{"tokens": ["a"], "tags": []}', "found 0 tags for 1 words, expected one a word"),
        ('{"tokens": "a b", "tags": ["O"]}', "found words of type str, expected a sequence of st"),
        ('{"tokens": [1], "tags": ["O"]}', "found the word 1 of type int, expected a string"),
        ('{"tokens": ["\\udfff"], "tags": ["O"]}', "found a word with half a surrogate pair at "),
        ('{"text": "a"}', "found the columns 'text', expected 'tokens' or 'words' (columns={"),
    ],
)
def test_refuses_sentences(tmp_path: Path, line: str, message: str) -> None:
    path = corpora.write(tmp_path / "file", f'{{"tokens": ["a"], "tags": ["O"]}}\n{line}\n')
    assert refusal(path, as_sentences).startswith(f":2: {message}")


def test_unlabelled_needs_a_text(tmp_path: Path) -> None:
    path = corpora.write(tmp_path / "file", '{"body": "a"}\n')
    message = refusal(path, lambda data: as_texts(data, "classification"))
    assert message.startswith(
        ":1: found the columns 'body', expected 'text' or 'tokens' or 'words'"
    )
