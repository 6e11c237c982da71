"""A whole step has the same bits on any number of threads."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from op_checks import need, run_with_environment

from fastadv import AdversarialFinetuner, FinetuneConfig
from fastadv.data import read_conll, read_documents, read_texts
from fastadv.samples import ROOT
from fastadv.tasks.registry import task_of

# Wide enough for a library to split its sums, which it does not for tiny ones.
MODEL = "fastadv-mini"


def data_of(task: str) -> tuple[Any, Any]:
    """Labelled English, and German text."""
    if task == "ner":
        folder = ROOT / "entities"
        return read_conll(folder / "en.train"), read_conll(folder / "de.test")
    folder = ROOT / "software"
    return read_documents(folder / "en.train"), read_texts(folder / "de.unlabeled")


def weights_after_a_step(task: Any, precision: Any) -> list[torch.Tensor]:
    english, german = data_of(task)
    rates = {"lr_task": 1e-3, "lr_generator": 1e-4, "lr_discriminator": 1e-2}
    config = FinetuneConfig(max_length=64, precision=precision, dropout=0.1, **rates)
    labels = task_of(task).labels_of(english)
    tuner = AdversarialFinetuner(MODEL, task, labels, config, device="cpu")
    for start in (0, 24):
        batch, draw_d, draw_g = english[start : start + 24], german[:8], german[8:16]
        tuner.step(
            tuner.collate(batch),
            tuner.collate(draw_d, batch[:8]),
            tuner.collate(draw_g, batch[8:16]),
        )
    return [p.detach().clone() for p in tuner.model.parameters()]


def check() -> None:
    """Both tasks, in both precisions, on 1 to 4 threads."""
    before = torch.get_num_threads()
    try:
        for task in ("classification", "ner"):
            for precision in ("fp32", "bf16"):
                torch.set_num_threads(1)
                wanted = weights_after_a_step(task, precision)
                for threads in (2, 3, 4):
                    torch.set_num_threads(threads)
                    found = weights_after_a_step(task, precision)
                    same = all(torch.equal(a, b) for a, b in zip(found, wanted, strict=True))
                    assert same, f"{task}, {precision}: other weights on {threads} threads"
    finally:
        torch.set_num_threads(before)


SCRIPT = "from test_threads import check; check()"


@pytest.mark.parametrize("isa", ["", "AVX512_CORE"])
def test_a_step(isa: str) -> None:
    need("linear", "native", "cpu")
    run_with_environment(SCRIPT, {"ONEDNN_MAX_CPU_ISA": isa})


@pytest.mark.parametrize("isa", ["", "AVX512_CORE"])
def test_a_step_where_mkl_splits_sums(isa: str, as_on_intel: dict[str, str]) -> None:
    need("linear", "native", "cpu")
    run_with_environment(SCRIPT, {"ONEDNN_MAX_CPU_ISA": isa} | as_on_intel)
