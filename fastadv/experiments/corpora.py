"""The paper's corpora as folders of the files that were published."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from fastadv.config import FinetuneConfig, TaskName
from fastadv.data import DataFile
from fastadv.experiments.plan import SEEDS, ExperimentPlan, Source, Target

MULTILINGUAL_BERT = "google-bert/bert-base-multilingual-cased"
"""The paper's model (section 3.1, footnote 2)."""


@dataclass(frozen=True)
class Layout:
    """The file names of a corpus: a language's own name, then what the file holds.

    Attributes:
        title: The corpus's name, for titles.
        task: The task that its labels are for.
        source: The name of English.
        targets: The names of the other languages by their code, in the order of the paper's table.
        train: The ending of labelled English training examples.
        unlabeled: The ending of another language's text.
        dev: The ending of labelled English examples that choose a step, and of other languages'
            text for the discriminator.
        test: The ending of test sets.
    """

    title: str
    task: TaskName
    source: str
    targets: Mapping[str, str]
    train: str
    unlabeled: str
    dev: str
    test: str


LAYOUTS = {
    "mldoc": Layout(
        "MLDoc",
        "classification",
        "english",
        {
            "de": "german", "es": "spanish", "fr": "french", "it": "italian", "ja": "japanese",
            "ru": "russian", "zh": "chinese",
        },
        ".train.1000", ".train.10000", ".dev", ".test",
    ),
    "conll": Layout(
        "CoNLL 2002/2003",
        "ner",
        "eng",
        {"de": "deu", "es": "esp", "nl": "ned"},
        ".train", ".train", ".testa", ".testb",
    ),
}  # fmt: skip
"""By the name that a command takes: Tables 1 and 2 of the paper (sections 3.2 and 3.3)."""


def corpus_plan(
    layout: str,
    folder: Path,
    config: FinetuneConfig | None = None,
    model: str = MULTILINGUAL_BERT,
    languages: Sequence[str] = (),
    seeds: Sequence[int] = SEEDS,
    translations: Mapping[str, tuple[DataFile, DataFile]] | None = None,
    threads: int | None = None,
) -> ExperimentPlan:
    """The paper's experiment over a folder that holds a corpus.

    Args:
        layout: "mldoc" (`english.train.1000`, `german.train.10000`, ...) or "conll" (`eng.train`,
            `deu.testb`, ...).
        folder: The folder of the files under their own names, perhaps packed (`.gz`, `.xz`).
        config: The settings; by default the paper's.
        model: The model; by default the paper's.
        languages: Codes of the targets; by default those of which the folder has all files.
        seeds: The seeds, one run each.
        translations: Translations of English texts by language, for Table 3.
        threads: See `ExperimentPlan`.

    Raises:
        ValueError: A file is missing, or the corpus has no such language.
    """
    names = LAYOUTS[layout]
    for language in (*languages, *(translations or {})):
        if language not in names.targets:
            known = ", ".join(names.targets)
            raise ValueError(f"{names.title} has no {language!r}, expected one of {known}")
    chosen = [code for code in names.targets if not languages or code in languages]
    if not languages:
        parts = (names.unlabeled, names.dev, names.test)
        chosen = [c for c in chosen if all(_find(folder, names.targets[c] + p) for p in parts)]
    if not chosen:
        example = next(iter(names.targets.values()))
        raise ValueError(
            f"{folder}: found no language's files, expected such as {example}{names.unlabeled}, "
            f"{example}{names.dev} and {example}{names.test}"
        )
    source = Source(
        "en", *(_file(folder, names.source + part) for part in (names.train, names.dev, names.test))
    )
    targets = tuple(
        Target(
            code,
            unlabeled=_file(folder, names.targets[code] + names.unlabeled),
            test=_file(folder, names.targets[code] + names.test),
            heldout=_file(folder, names.targets[code] + names.dev),
            translations=(translations or {}).get(code),
        )
        for code in chosen
    )
    return ExperimentPlan(
        names.title, names.task, model, source, targets, tuple(seeds), config or FinetuneConfig(),
        threads, layout,
    )  # fmt: skip


def _find(folder: Path, name: str) -> Path | None:
    paths = (folder / f"{name}{packed}" for packed in ("", ".gz", ".xz"))
    return next((path for path in paths if path.is_file()), None)


def _file(folder: Path, name: str) -> DataFile:
    path = _find(folder, name)
    if path is None:
        raise ValueError(f"{folder / name}: found no such file, expected the corpus's own")
    return DataFile(str(path))
