from pathlib import Path
from typing import Any

import pytest

from fastadv.data import Document, Sentence, as_documents, as_sentences, as_texts

TAGGED = Sentence(("EU", "rejects"), ("B-ORG", "O"))


@pytest.mark.parametrize(
    ("example", "expected"),
    [
        (Document("x", "A"), Document("x", "A")),
        (("x", "A"), Document("x", "A")),
        (["x", None], Document("x")),
        ({"text": "x", "label": "A", "id": 3}, Document("x", "A")),
        ({"text": "x"}, Document("x")),
        ("x", Document("x")),
        ("", Document("")),
    ],
)
def test_documents_in_memory(example: Any, expected: Document) -> None:
    assert as_documents([example, example]) == [expected, expected]
    assert as_documents(iter([example])) == [expected]
    assert as_texts([example], "classification") == [Document(expected.text)]


@pytest.mark.parametrize(
    ("example", "expected"),
    [
        (TAGGED, TAGGED),
        (Sentence(("EU", "rejects"), ("I-ORG", "O")), TAGGED),
        ((("EU", "rejects"), ("I-ORG", "O")), TAGGED),
        ((["EU", "rejects"], ["B-ORG", "O"]), TAGGED),
        ({"tokens": ["EU", "rejects"], "ner_tags": ["B-ORG", "O"]}, TAGGED),
        ({"words": ["EU", "rejects"], "tags": ["I-ORG", "O"]}, TAGGED),
        ((["EU", "rejects"], None), Sentence(TAGGED.words)),
        ({"tokens": ["EU", "rejects"]}, Sentence(TAGGED.words)),
        (["EU", "rejects"], Sentence(TAGGED.words)),
        ("EU  rejects\n", Sentence(TAGGED.words)),
        ({"text": "EU rejects"}, Sentence(TAGGED.words)),
        (Document("EU rejects", "A"), Sentence(TAGGED.words)),
        ("", Sentence(())),
        (((), ()), Sentence((), ())),
    ],
)
def test_sentences_in_memory(example: Any, expected: Sentence) -> None:
    assert as_sentences([example]) == [expected]
    assert as_texts([example], "ner") == [Sentence(expected.words)]


def test_where_an_example_was_read_stays() -> None:
    document, sentence = Document("a", where="x:1"), Sentence(("a",), ("I-X",), where="x:2")
    assert as_documents([document])[0].where == "x:1"
    assert as_sentences([sentence])[0].where == "x:2"


def test_records_check_themselves() -> None:
    assert Sentence(["a"], ["O"]) == Sentence(("a",), ("O",))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="found 1 tags for 2 words, expected one a word"):
        Sentence(("a", "b"), ("O",))
    with pytest.raises(ValueError, match="found the tag 'NOUN', expected O, B-TYPE or I-TYPE"):
        Sentence(("a",), ("NOUN",))
    with pytest.raises(ValueError, match="found words of type str, expected a sequence"):
        Sentence("ab")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="found the word 3 of type int"):
        Sentence((3,))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="found the label 3 of type int, expected the name"):
        Document("a", 3)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="found a text of type bytes"):
        Document(b"a")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (["x", 3], "example 1: found an example of type int, expected a text"),
        ([("x", "A", "B")], "example 0: found an example of type tuple and length 3"),
        ([{"label": "A"}], "example 0: found the columns 'label', expected 'text'"),
        ([("x", 2)], "example 0: found the label 2 of type int"),
        ([TAGGED], "example 0: found an example of type Sentence"),
        ({"de": ["x"]}, "found data of type dict, expected a path or a sequence"),
        (7, "found data of type int"),
        (b"x", "found data of type bytes"),
    ],
)
def test_refuses_as_documents(data: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        as_documents(data)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ([{"tokens": ["a"], "ner_tags": [3]}], r"example 0: found the tags \[3\], expected their"),
        ([{"id": 1}], "example 0: found the columns 'id', expected 'tokens' or 'words'"),
        ([{}], "found the columns none"),
        ([(["a"], ["O", "O"])], "example 0: found 2 tags for 1 words"),
        ([3], "example 0: found an example of type int, expected words"),
    ],
)
def test_refuses_as_sentences(data: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        as_sentences(data)


def test_paths_of_documents(tmp_path: Path) -> None:
    labelled = tmp_path / "german.train"
    labelled.write_text("CCAT\teins\nMCAT\tzwei\n", encoding="utf-8")
    assert as_documents(str(labelled)) == [Document("eins", "CCAT"), Document("zwei", "MCAT")]
    assert as_texts(labelled, "classification") == [Document("eins"), Document("zwei")]
    plain = tmp_path / "de.txt"
    plain.write_text("\neins zwei\ndrei\n", encoding="utf-8")
    assert as_texts(plain, "classification") == [Document("eins zwei"), Document("drei")]
    with pytest.raises(ValueError, match=r"txt:2: .*expected LABEL<TAB>text"):
        as_documents(plain)


def test_a_label_never_slips_into_the_text(tmp_path: Path) -> None:
    path = tmp_path / "german.train"
    path.write_text("CCAT\teins\nzwei\n", encoding="utf-8")
    with pytest.raises(ValueError, match="train:2: found 'zwei', expected LABEL<TAB>text"):
        as_texts(path, "classification")


def test_paths_of_sentences(tmp_path: Path) -> None:
    columns = tmp_path / "eng.train"
    columns.write_text("EU NNP I-ORG\nrejects VBZ O\n", encoding="utf-8")
    assert as_sentences(columns) == [TAGGED]
    assert as_texts(str(columns), "ner") == [Sentence(TAGGED.words)]
    plain = tmp_path / "de.txt"
    plain.write_text("EU rejects\n", encoding="utf-8")
    assert as_texts(plain, "ner") == [Sentence(TAGGED.words)]


def test_a_string_is_a_path() -> None:
    for read in (as_documents, as_sentences, lambda data: as_texts(data, "ner")):
        with pytest.raises(ValueError, match="nowhere: found no file of that name"):
            read("nowhere")


@pytest.mark.parametrize(("task", "kind"), [("classification", Document), ("ner", Sentence)])
def test_the_kind_of_record_may_stand_for_the_task(task: str, kind: Any) -> None:
    data = ["EU rejects", TAGGED, {"text": "a b"}]
    assert as_texts(data, kind) == as_texts(data, task)
    assert {type(record) for record in as_texts(data, kind)} == {kind}


def test_other_tasks_are_refused() -> None:
    with pytest.raises(ValueError, match="found the task <class 'int'>, expected"):
        as_texts(["x"], int)  # type: ignore[call-overload]
    with pytest.raises(ValueError, match="found the task 'pos', expected 'classification' or"):
        as_texts(["x"], "pos")
