"""Data sets of the Hugging Face hub: real `Dataset` objects in memory, and no network."""

import builtins
import math
import sys
from typing import Any

import pytest

from fastadv.data import (
    DataFile,
    Document,
    Sentence,
    as_documents,
    as_sentences,
    as_texts,
    iter_texts,
)

datasets = pytest.importorskip("datasets", reason="the package datasets is not installed")

TAGS = ["O", "B-PER", "I-PER", "B-ORG"]


def documents(**columns: Any) -> Any:
    """A data set with classes by number."""
    columns = {"id": [7, 8], "text": ["a b", "c"], "label": [1, 0], **columns}
    features = datasets.Features(
        id=datasets.Value("int64"),
        text=datasets.Value("string"),
        label=datasets.ClassLabel(names=["bad", "good"]),
    )
    return datasets.Dataset.from_dict(columns, features=features)


def sentences(name: str = "ner_tags", feature: Any = None) -> Any:
    labels = datasets.ClassLabel(names=TAGS)
    features = datasets.Features(
        {
            "tokens": datasets.Sequence(datasets.Value("string")),
            "pos_tags": datasets.Sequence(datasets.Value("int64")),
            name: feature(labels) if feature else datasets.Sequence(labels),
        }
    )
    rows = {"tokens": [["EU", "Jo", "Li"], ["x"]], "pos_tags": [[1, 2, 3], [4]]}
    return datasets.Dataset.from_dict({**rows, name: [[3, 1, 2], [0]]}, features=features)


TAGGED = [Sentence(("EU", "Jo", "Li"), ("B-ORG", "B-PER", "I-PER")), Sentence(("x",), ("O",))]


def test_classes_by_number_get_their_names() -> None:
    data = documents()
    assert as_documents(data) == [Document("a b", "good"), Document("c", "bad")]
    assert as_texts(data, "classification") == [Document("a b"), Document("c")]
    assert as_texts(data, "ner") == [Sentence(("a", "b")), Sentence(("c",))]
    assert as_documents(data.with_format("numpy")) == as_documents(data)
    assert as_documents(data.to_iterable_dataset()) == as_documents(data)
    assert as_documents(data.rename_columns({"text": "sentence", "label": "intent"})) == [
        Document("a b", "good"),
        Document("c", "bad"),
    ]


def test_tags_by_number_get_their_names() -> None:
    def as_list(feature: Any) -> list[Any]:
        return [feature]

    for data in (sentences(), sentences("tags"), sentences(feature=as_list)):
        assert as_sentences(data) == TAGGED
        assert as_sentences(data.to_iterable_dataset()) == TAGGED
        assert as_sentences(data.with_format("numpy")) == TAGGED
        assert as_texts(data, "ner") == [Sentence(s.words) for s in TAGGED]
        assert as_texts(data, "classification") == [Document("EU Jo Li"), Document("x")]


def test_names_in_the_data_itself() -> None:
    data = datasets.Dataset.from_dict({"text": ["a"], "label": ["A"]})
    assert as_documents(data) == [Document("a", "A")]
    data = datasets.Dataset.from_dict({"words": [["a"]], "tags": [["I-X"]]})
    assert as_sentences(data) == [Sentence(("a",), ("B-X",))]


def test_a_stream_without_features() -> None:
    def rows() -> Any:
        yield {"text": "a", "label": "A"}

    data = datasets.IterableDataset.from_generator(rows)
    assert data.features is None
    assert as_documents(data) == [Document("a", "A")]
    assert next(iter(iter_texts(data, "ner"))) == Sentence(("a",))


def test_other_columns_are_not_even_decoded() -> None:
    data = documents().add_column("image", [{"path": None, "bytes": b"no image"}] * 2)
    data = data.cast_column("image", datasets.Image())
    assert as_texts(data, "classification") == [Document("a b"), Document("c")]


def of(**columns: list[Any]) -> Any:
    return datasets.Dataset.from_dict(columns)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (documents(label=[1, -1]), "example 1: found no label, expected the name of a class"),
        (documents(label=[None, 1]), "example 0: found no label"),
        (of(text=["a"], label=[2]), "example 0: found the label 2 of type int, expected the name"),
        (of(text=["a"], label=[0.5]), "example 0: found the label 0.5 of type float, expected"),
        (of(text=["a"], label=[math.nan]), "example 0: found the label nan of type float, exp"),
        (of(text=["a"], label=[None]), "example 0: found no label"),
        (of(text=["a", None], label=["A", "B"]), "example 1: found a text of type NoneType"),
        (of(text=["a"]), "found the columns 'text', expected 'label'$"),
        (of(body=["a"], label=["A"]), "found the columns 'body', 'label', expected 'text'$"),
        (datasets.DatasetDict(train=documents(), test=documents()),
         r"found the splits 'train', 'test', expected one of them, as data\['train'\]"),
    ],
)  # fmt: skip
def test_refuses_documents(data: Any, message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}"):
        as_documents(data)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (of(tokens=[["a"]], tags=[[3]]), r"example 0: found the tags \[3\], expected their names"),
        (of(tokens=[["a"]], tags=[[0.5]]), "example 0: found the tag 0.5 of type float"),
        (of(tokens=[["a"]], tags=[None]), "example 0: found no tags, expected one a word"),
        (of(tokens=[["a"]]), "found the columns 'tokens', expected 'tags' or 'ner_tags'$"),
        (of(text=["a"], tags=[["O"]]), "found the columns 'text', 'tags', expected 'tokens' or"),
    ],
)
def test_refuses_sentences(data: Any, message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}"):
        as_sentences(data)


def test_unlabelled_needs_a_text() -> None:
    with pytest.raises(ValueError, match="found the columns 'body', expected 'text' or 'tokens'"):
        as_texts(of(body=["a"]), "classification")
    assert as_texts(of(text=["a"], label=[2.5]), "classification") == [Document("a")]


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """A hub of one's own: what `load_dataset` is asked for, and what it answers."""
    asked: dict[str, Any] = {}

    def load_dataset(name: str, config: str | None, split: str | None) -> Any:
        asked.update(name=name, config=config, split=split)
        asked["bars"] = not datasets.are_progress_bars_disabled()
        answer = asked["answer"]
        if isinstance(answer, Exception):
            raise answer
        if split is None and isinstance(answer, datasets.Dataset):
            return datasets.DatasetDict(train=answer)
        return answer

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    return asked


def test_by_name(hub: dict[str, Any]) -> None:
    hub["answer"] = documents()
    assert as_documents("hf:me/mine/de:train[:10]") == as_documents(documents())
    asked = {key: hub[key] for key in ("name", "config", "split")}
    assert asked == {"name": "me/mine", "config": "de", "split": "train[:10]"}
    assert as_texts("hf:me/mine:test", "ner")[0] == Sentence(("a", "b"))
    assert (hub["config"], hub["split"]) == (None, "test")
    assert hub["bars"] is False, "no bars where nobody looks"
    assert not datasets.are_progress_bars_disabled()
    hub["answer"] = datasets.DatasetDict(only=documents())
    assert len(as_documents("hf:me/mine")) == 2
    hub["answer"] = documents().rename_column("text", "body")
    file = DataFile("hf:me/mine:x", columns={"text": "body"})
    assert as_documents(file) == as_documents(documents())


@pytest.mark.parametrize(
    ("answer", "kind", "message"),
    [
        (ConnectionError("Couldn't\nreach"), OSError,
         r"hf:a/b: found no way to the hub \(Couldn't reach\), expected a network, or"),
        (FileNotFoundError("Dataset 'a/b' doesn't exist"), ValueError,
         "hf:a/b: found Dataset 'a/b' doesn't exist, expected hf:OWNER/NAME"),
        (ValueError(""), ValueError, "hf:a/b: found ValueError, expected hf:OWNER/NAME"),
        (RuntimeError("scripts"), ValueError, "hf:a/b: found scripts, expected"),
        (datasets.DatasetDict(train=documents(), test=documents()), ValueError,
         "hf:a/b: found the splits 'train', 'test', expected one of them, such as hf:a/b:train"),
        (documents().remove_columns("text"), ValueError,
         r"hf:a/b: found the columns 'id', 'label', expected 'text' \(columns="),
        (documents(label=[1, -1]), ValueError, "hf:a/b: example 1: found no label"),
    ],
)  # fmt: skip
def test_refuses_names(
    hub: dict[str, Any], answer: Any, kind: type[Exception], message: str
) -> None:
    hub["answer"] = answer
    with pytest.raises(kind, match=f"^{message}") as raised:
        as_documents("hf:a/b")
    assert len(str(raised.value).splitlines()) == 1
    assert not datasets.are_progress_bars_disabled()


@pytest.mark.parametrize("name", ["hf:", "hf:mine", "hf:a/b/c/d", "hf:a/b:", "hf:/b"])
def test_refuses_other_forms(name: str) -> None:
    with pytest.raises(ValueError, match=r"found a name of another form, expected hf:OWNER/NAME\["):
        as_documents(name)


def test_the_real_library_without_a_network() -> None:
    with pytest.raises(OSError, match=r"^hf:nobody/nothing: found no way to the hub") as raised:
        as_documents("hf:nobody/nothing")
    assert len(str(raised.value).splitlines()) == 1


def test_the_package_is_named_where_it_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without(name: str, *rest: Any, **named: Any) -> Any:
        if name == "datasets":
            raise ImportError(name)
        return real(name, *rest, **named)

    monkeypatch.delitem(sys.modules, "datasets")
    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ImportError) as raised:
        as_documents("hf:a/b")
    assert str(raised.value) == (
        "hf:a/b: reading from the hub needs the package datasets: pip install 'fastadv[hub]'"
    )
    assert as_documents([("a", "A")]) == [Document("a", "A")]


def test_tables_of_pandas_are_refused() -> None:
    pandas = pytest.importorskip("pandas", reason="pandas is not installed")
    table = pandas.DataFrame({"text": ["a"], "label": ["A"]})
    with pytest.raises(ValueError, match=r"found a table, expected .* data.to_dict\('records'\)"):
        as_documents(table)
    assert as_documents(table.to_dict("records")) == [Document("a", "A")]
    assert as_texts(table["text"], "classification") == [Document("a")]
