"""Every task is whole, and another one needs no change elsewhere."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import tiny

from fastadv import AdversarialFinetuner, FinetuneConfig
from fastadv.batches.tokenization import TokenizedDataset, tokenize_documents
from fastadv.config import SCORE, TASK_SETTINGS, TaskName, TaskSettings
from fastadv.data import Document, as_documents
from fastadv.tasks.inference import document_probabilities
from fastadv.tasks.registry import TASKS, task_of

pytestmark = pytest.mark.usefixtures("one_thread")

ROOT = Path(__file__).parents[2]
LABELED = {"classification": tiny.ENGLISH, "ner": tiny.SENTENCES}


def finetuner(task: Any, labels: Sequence[str], **changes: Any) -> AdversarialFinetuner:
    config = FinetuneConfig(**{"max_length": 16, "precision": "fp32", "batch_size": 3, **changes})
    return AdversarialFinetuner(
        tiny.tiny_bert(), task, labels, config, tokenizer=tiny.tiny_tokenizer(), device="cpu"
    )


def test_every_name_has_settings_and_a_task() -> None:
    names = set(get_args(TaskName))
    assert names == set(TASK_SETTINGS) == set(TASKS) == set(SCORE) == set(LABELED)
    for name, task in TASKS.items():
        assert task.name == name
        assert task.metric == TASK_SETTINGS[name].metric == SCORE[name]
        # Every default is a setting that may be left open, and closes it.
        resolved = FinetuneConfig().resolved(name)
        for field, value in TASK_SETTINGS[name].defaults.items():
            assert getattr(FinetuneConfig(), field) is None
            assert getattr(resolved, field) == value


@pytest.mark.parametrize("name", TASKS)
def test_what_a_task_says_fits_together(name: str) -> None:
    task = task_of(name)
    labels = task.labels_of(LABELED[name])
    assert task.checked_labels(list(labels)) == labels
    tuner = finetuner(name, labels)
    assert tuner.model.by_token is task.by_token
    data = tuner.evaluation_set(LABELED[name])
    assert task.metric in tuner.score(data)
    rows = task.rows(data.outputs(tuner.model, 3))
    examples = list(task.texts(LABELED[name]))
    expected = sum(len(e.words) for e in examples) if task.by_token else len(examples)
    assert rows.shape == (expected, len(labels)) and rows.dtype == np.float32
    np.testing.assert_allclose(rows.sum(axis=1), 1, rtol=1e-6)


@pytest.mark.parametrize("name", TASKS)
def test_long_texts_become_windows_where_the_settings_say_so(name: str) -> None:
    task, words = task_of(name), " ".join(["rain"] * 50)
    config = FinetuneConfig(max_length=16).resolved(name)
    dataset = task.tokenize(tiny.tiny_tokenizer(), list(task.texts([words])), None, config)
    assert (len(dataset[0]) > 1) is TASK_SETTINGS[name].windows


def test_an_unknown_task_is_refused_in_one_sentence() -> None:
    message = "task is 'parsing', expected one of classification, ner"
    with pytest.raises(ValueError, match=f"^{message}$"):
        task_of("parsing")
    with pytest.raises(ValueError, match=f"^{message}$"):
        finetuner("parsing", tiny.LABELS)
    with pytest.raises(ValueError, match=f"^{message}$"):
        FinetuneConfig().resolved("parsing")


@pytest.mark.parametrize("room", ["nn", "training", "model_io", "selection", "run", "records"])
def test_no_other_room_names_a_task(room: str) -> None:
    names = re.compile("|".join(f'"{name}"' for name in TASKS))
    paths = sorted((ROOT / "fastadv" / room).glob("*.py"))
    assert paths and [path.name for path in paths if names.search(path.read_text())] == []


@dataclass(frozen=True)
class Share:
    right: float

    def scores(self) -> dict[str, float]:
        return {"right": self.right}

    def details(self) -> dict[str, Any]:
        return {}


@dataclass(frozen=True)
class Answer:
    long: bool

    def as_json(self) -> dict[str, Any]:
        return {"long": self.long}


class Lengths:
    """Whether a text is long, which needs no label."""

    name, metric, by_token, auto_model, one_class = "lengths", "right", False, None, True

    def checked_labels(self, labels: Sequence[str]) -> tuple[str, ...]:
        return tuple(labels)

    def labels_of(self, data: Any) -> tuple[str, ...]:
        return ("short", "long")

    def labeled(self, data: Any) -> list[Document]:
        return [Document(d.text, self._gold(d.text)) for d in as_documents(data)]

    def texts(self, data: Any) -> Iterator[Document]:
        return iter(self.labeled(data))

    def tokenize(
        self, tokenizer: Any, examples: Any, label_ids: Mapping[str, int] | None, config: Any
    ) -> TokenizedDataset:
        return tokenize_documents(tokenizer, examples, label_ids, config.max_length)

    def evaluation(
        self, tokenizer: Any, examples: Any, label_ids: Mapping[str, int], config: Any
    ) -> tuple[TokenizedDataset, list[Any]]:
        gold = [document.label for document in examples]
        return self.tokenize(tokenizer, examples, label_ids, config), gold

    def outputs(self, model: Any, dataset: Any, batch_size: int) -> Any:
        return document_probabilities(model, dataset, batch_size)

    def rows(self, outputs: Any) -> Any:
        return outputs

    def groups(self, labels: Sequence[str]) -> tuple[str, ...]:
        return tuple(labels)

    def apart(self) -> frozenset[str]:
        return frozenset()

    def counts(self, examples: Any) -> Mapping[str, int]:
        return Counter(document.label for document in examples)

    def classes(self, gold: Any) -> set[str]:
        return set(gold)

    def known(self, outputs: Any, gold: Any, labels: Any) -> tuple[Any, list[str]]:
        return outputs, list(gold)

    def report(self, outputs: Any, gold: Any, labels: Any) -> Share:
        best = outputs.argmax(axis=1)
        return Share(float(np.mean([labels[k] == g for k, g in zip(best, gold, strict=True)])))

    def predictions(self, outputs: Any, examples: Any, labels: Any) -> list[Answer]:
        return [Answer(labels[k] == "long") for k in outputs.argmax(axis=1)]

    def _gold(self, text: str) -> str:
        return "long" if len(text) > 20 else "short"


def test_another_task_trains_scores_predicts_and_is_saved(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """No file of the library knows it: its settings and itself are added to the two tables."""
    defaults = FinetuneConfig().resolved("classification")
    rates = {n: getattr(defaults, n) for n in TASK_SETTINGS["classification"].defaults}
    settings: Any = TASK_SETTINGS
    monkeypatch.setitem(settings, "lengths", TaskSettings("right", rates | {"lr_task": 1e-2}))
    monkeypatch.setitem(TASKS, "lengths", Lengths())
    texts = [text for text, _ in tiny.ENGLISH]
    labels = task_of("lengths").labels_of(texts)
    tuner = finetuner("lengths", labels, steps=20, eval_every=10, selection="nuclear_norm")
    history = tuner.fit(
        texts,
        {"de": tiny.GERMAN},
        dev=texts,
        test={"de": tiny.GERMAN},
        output_dir=tmp_path / "run",
        quiet=True,
    )
    last = history.evaluations()[-1]
    assert last["dev"] == {"right": 1.0} and last["test"]["de"].keys() == {"right"}
    assert tuner.evaluate({"en": texts}) == {"en": {"right": 1.0}}
    saved = AdversarialFinetuner.from_pretrained(tmp_path / "run" / "last", device="cpu")
    assert saved.task == "lengths" and saved.labels == labels
    assert saved.predict(texts) == [Answer(len(text) > 20) for text in texts]
