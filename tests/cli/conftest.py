"""Tiny models and files for the command line."""

from __future__ import annotations

from pathlib import Path

import pytest
import tiny

from fastadv import AdversarialFinetuner, FinetuneConfig

# Before a test module imports it, so that its assertions say what they found.
pytest.register_assert_rewrite("cli_helpers")


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pretrained encoder."""
    return tiny.tiny_folder(tmp_path_factory.mktemp("model"), max_position_embeddings=96)


@pytest.fixture(scope="session")
def classifier(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as `train` leaves it, for documents."""
    return _saved(model, "classification", tiny.LABELS, tmp_path_factory.mktemp("classifier"))


@pytest.fixture(scope="session")
def tagger(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as `train` leaves it, for named entities."""
    return _saved(model, "ner", tiny.TAGS, tmp_path_factory.mktemp("tagger"))


def _saved(model: Path, task: str, labels: tuple[str, ...], folder: Path) -> Path:
    config = FinetuneConfig(max_length=32, eval_batch_size=4, precision="fp32")
    AdversarialFinetuner(model, task, labels, config).save_pretrained(folder)
    return folder


@pytest.fixture
def corpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory, with small files in it."""
    lines = "".join(f"{label}\t{text}\n" for text, label in tiny.ENGLISH)
    (tmp_path / "en.train").write_text(lines)
    (tmp_path / "de.txt").write_text("\n".join(tiny.GERMAN) + "\n")
    (tmp_path / "fr.txt").write_text("\n".join(tiny.FRENCH) + "\n")
    columns = [
        "".join(f"{word} {tag}\n" for word, tag in zip(words, tags, strict=True))
        for words, tags in tiny.SENTENCES
    ]
    (tmp_path / "en.conll").write_text("\n".join(columns))
    monkeypatch.chdir(tmp_path)
    return tmp_path
