"""One run of an experiment: it is trained, observed, and summed up in one file."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import torch

from fastadv.batches.sampling import Sampler
from fastadv.data import read_pairs
from fastadv.experiments.observer import ExperimentObserver, TargetTexts
from fastadv.experiments.plan import ExperimentPlan, RunPlan, Target
from fastadv.finetuner import AdversarialFinetuner
from fastadv.records.history import History
from fastadv.run.checkpoint import previous_of
from fastadv.run.files import write_atomically
from fastadv.run.folder import CHECKPOINT, METRICS
from fastadv.tasks.class_shares import ClassShares
from fastadv.tasks.registry import task_of
from fastadv.tasks.task import Task

RESULT = "result.json"
HELDOUT_EVERY = 10
"""One text in this many is set aside for a language without held-out text of its own."""


def perform(plan: ExperimentPlan, run: RunPlan, folder: Path, quiet: bool = False) -> None:
    """Trains or resumes one run in `folder`, and writes result.json, which finishes it.

    The checkpoints are then removed: only the records and the result of a run are kept.

    Raises:
        ValueError: Malformed data, or a run in `folder` that is of another plan.
        FloatingPointError: A loss is no longer finite.
        OSError: The disk is full.
        Stopped: SIGINT or SIGTERM came; a checkpoint was written first.
    """
    if plan.threads is not None:
        torch.set_num_threads(plan.threads)
    task = task_of(plan.task)
    texts = {name: _texts(task, plan.target(name)) for name in run.languages}
    arm, settings, labels = (
        plan.arm(run.condition),
        plan.settings(run),
        task.labels_of(plan.source.train),
    )
    known = ClassShares(task, labels, task.counts(task.labeled(plan.source.train)))
    few = _few(plan, known, run)
    shares: dict[str, dict[str, dict[str, float]]] = {
        name: {
            "oracle": known.counted(known.task.labeled(plan.target(name).unlabeled), pseudo=0),
            "counted": known.counted(examples),
        }
        for name, examples in few.items()
    }
    if arm.shares in ("counted", "oracle"):
        drawn_by = {name: found[arm.shares] for name, found in shares.items()}
        settings = dataclasses.replace(settings, class_shares=drawn_by)
    tuner = AdversarialFinetuner(plan.model, plan.task, labels, settings)
    observer = ExperimentObserver(
        tuner,
        plan.source.dev,
        {name: observed for name, (_, observed) in texts.items()},
        known,
        shares,
        few,
    )
    tests = {name: plan.target(name).test for name in run.languages}
    if not arm.adversarial:
        # No table has the source language's score of adversarial runs; its test set may be large.
        tests = {plan.source.language: plan.source.test} | tests
    unlabeled = {n: trained for n, (trained, _) in texts.items() if arm.adversarial}
    history = tuner.fit(
        plan.source.train,
        unlabeled,
        dev=plan.source.dev,
        test=tests,
        output_dir=folder,
        resume=True,
        quiet=quiet,
        observer=observer,
        export=False,
    )
    mean = next(record for record in history.records if record["kind"] == "mean")
    averaged = {name: mean[name] for name in ("evaluations", "test", "observed")}
    write_atomically(folder / RESULT, json.dumps(_result(plan, run, history, averaged)) + "\n")
    remove_checkpoints(folder)


def remove_checkpoints(folder: Path) -> None:
    """Removes what a finished run no longer needs."""
    for path in (folder / CHECKPOINT, previous_of(folder / CHECKPOINT)):
        path.unlink(missing_ok=True)


def is_finished(folder: Path) -> bool:
    """Whether the run in a folder was performed to its end."""
    return (folder / RESULT).exists()


def has_records(folder: Path) -> bool:
    """Whether a run was begun in a folder."""
    return (folder / METRICS).exists()


def _texts(task: Task, target: Target) -> tuple[Any, TargetTexts]:
    """What the adversary trains on, and what is observed."""
    unlabeled = list(task.texts(target.unlabeled))
    if target.heldout is not None:
        trained, heldout = unlabeled, list(task.texts(target.heldout))
    else:
        heldout = unlabeled[::HELDOUT_EVERY]
        trained = [t for number, t in enumerate(unlabeled) if number % HELDOUT_EVERY]
    pairs = None if target.translations is None else read_pairs(*target.translations)
    return trained, TargetTexts(trained, heldout, pairs)


def _few(plan: ExperimentPlan, known: ClassShares, run: RunPlan) -> dict[str, list[Any]]:
    """By language a few labelled examples of its text; none where the plan reads no labels."""
    if plan.counted is None:
        return {}
    found = {}
    for name in run.languages:
        labeled = known.task.labeled(plan.target(name).unlabeled)
        sampler = Sampler(len(labeled), run.seed, f"counted/{name}")
        chosen = sampler.draw(min(plan.counted, len(labeled)))
        found[name] = [labeled[int(i)] for i in chosen]
    return found


def _result(
    plan: ExperimentPlan, run: RunPlan, history: History, averaged: dict[str, Any]
) -> dict[str, Any]:
    """A line of results.jsonl: nothing in it depends on when or how fast the run was made."""
    training = [
        {n: v for n, v in record.items() if not n.endswith("_per_second") and n != "kind"}
        for record in history.records
        if record["kind"] == "train"
    ]
    evaluations = [{n: v for n, v in e.items() if n != "kind"} for e in history.evaluations()]
    return {
        "run": run.name,
        "experiment": plan.name,
        "model": plan.model,
        "task": plan.task,
        "condition": run.condition,
        "source": plan.source.language,
        "languages": list(run.languages),
        "seed": run.seed,
        "majority": history.majority,
        "selected_step": history.best_step,
        "evaluations": evaluations,
        "averaged": averaged,
        "training": training,
        "warnings": [r["message"] for r in history.records if r["kind"] == "warning"],
    }
