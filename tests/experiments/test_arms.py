"""Experiments with arms of their own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import made_corpora
import numpy as np
import pytest
import yaml

from fastadv.data import as_documents
from fastadv.experiments.arm_tables import arm_tables, interval
from fastadv.experiments.experiment import Experiment
from fastadv.experiments.plan import ExperimentPlan
from fastadv.experiments.plan_file import read_plan
from fastadv.experiments.report import write_report
from fastadv.experiments.results import Results

ARMS: dict[str, Any] = {
    "baseline": {"adversarial": False},
    "paper": {},
    "estimated": {"shares": "estimate", "config": {"shares_every": 1}},
    "counted": {"shares": "counted"},
    "oracle": {"shares": "oracle"},
    "relaxed": {"config": {"relaxation": 1.0}},
}
COUNTED = 5


@pytest.fixture(scope="module")
def plan(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> ExperimentPlan:
    folder = tmp_path_factory.mktemp("arms") / "data"
    changes = {"arms": ARMS, "together": True, "counted": COUNTED}
    return read_plan(made_corpora.written_down(folder, tiny_model, **changes))


@pytest.fixture(scope="module")
def done(plan: ExperimentPlan, tmp_path_factory: pytest.TempPathFactory) -> Experiment:
    experiment = Experiment(tmp_path_factory.mktemp("done") / "out", plan)
    experiment.go(quiet=True)
    return experiment


def test_the_plan_survives_json_and_runs_are_together(plan: ExperimentPlan) -> None:
    again = ExperimentPlan.of_json(json.loads(json.dumps(plan.as_json())))
    assert again.as_json() == plan.as_json()
    runs = plan.runs()
    assert len(runs) == len(ARMS) * len(plan.seeds)
    assert {run.languages for run in runs} == {tuple(t.language for t in plan.targets)}
    assert runs[0].name == f"baseline-{plan.seeds[0]}"
    assert len({run.name for run in runs}) == len(runs)


def test_every_arm_draws_by_the_shares_that_it_says(plan: ExperimentPlan, done: Experiment) -> None:
    settings = {run.condition: plan.settings(run) for run in plan.runs()}
    assert (
        settings["estimated"].class_shares == "estimate" and settings["estimated"].shares_every == 1
    )
    assert settings["relaxed"].relaxation == 1.0 and settings["paper"].relaxation == 0.0
    assert not settings["baseline"].adversarial
    losses = {
        line["run"]: [record["loss_discriminator"] for record in line["training"]]
        for line in Results.read(done.folder / "results.jsonl").lines
        if line["condition"] != "baseline"
    }
    last = [losses[f"{name}-{plan.seeds[0]}"] for name in ("paper", "counted", "oracle", "relaxed")]
    assert all(one != other for k, one in enumerate(last) for other in last[k + 1 :])


def test_few_labels_are_those_of_the_seed_and_all_are_the_truth(
    plan: ExperimentPlan, done: Experiment
) -> None:
    results = Results.read(done.folder / "results.jsonl")
    assert results.matchings() == [
        "english", "equal", "halfway", "estimate", "oracle", "counted", "fitted",
    ]  # fmt: skip
    target = plan.targets[0]
    documents = as_documents(target.unlabeled)
    truth = {k: sum(d.label == k for d in documents) / len(documents) for k in "CEGM"}
    truth = {
        f"{k}CAT": sum(d.label == f"{k}CAT" for d in documents) / len(documents) for k in truth
    }
    line = results.runs("baseline", target.language)[plan.seeds[0]]
    observed = line["evaluations"][-1]["observed"][target.language]
    equal = sum(abs(share - 0.25) for share in truth.values()) / 2
    assert observed["share_error"]["equal"] == pytest.approx(equal)
    assert 0 < observed["share_error"]["counted"] < 1
    other = results.runs("baseline", target.language)[plan.seeds[1]]
    counted = [
        one["evaluations"][-1]["observed"][target.language]["share_error"]["counted"]
        for one in (line, other)
    ]
    assert counted[0] != counted[1]
    assert line["averaged"]["observed"][target.language]["matched"].keys() == {*results.matchings()}


def test_tables_have_a_row_an_arm_and_mark_what_reads_labels(done: Experiment) -> None:
    results = Results.read(done.folder / "results.jsonl")
    tables = arm_tables(results)
    scores = tables["arms_last"]
    assert [row[0] for row in scores.rows] == [
        "baseline", "paper", "estimated", "counted (few-shot)",
        "oracle (not allowed: reads target labels)", "relaxed",
    ]  # fmt: skip
    assert scores.header[1] == "as they are"
    assert "matched: oracle (not allowed: reads target labels)" in scores.header
    gains, effects = tables["gains_last"], tables["effects_last"]
    # The baseline gains nothing over itself; training adds nothing to it at equal information.
    assert gains.rows[0][1].startswith("+0.0 [") and set(effects.rows[0][1:]) == {
        effects.rows[0][1]
    }
    plain = results.mean_scores("baseline", "last")
    paper = results.mean_scores("paper", "last", "equal")
    values = [paper[seed] - plain[seed] for seed in plain]
    assert gains.rows[1][scores.header.index("matched: equal")] == interval(values)
    page = write_report(done)[0].read_text("utf-8")
    assert "<h2>Arms: last step</h2>" in page and "<h2>Class shares</h2>" in page


def test_an_interval_is_students() -> None:
    values = [0.01, 0.03, 0.02, 0.04]
    half = 3.182446 * np.std(values, ddof=1) / 2
    assert interval(values) == f"+2.5 [{100 * (0.025 - half):+.1f}, {100 * (0.025 + half):+.1f}]"
    assert interval([0.01]) == "+1.0"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"arms": {"paper": {}}}, "expected 'baseline' without the adversary first"),
        ({"arms": {"baseline": {}}}, "expected 'baseline' without the adversary first"),
        ({"arms": {"baseline": {"adversarial": False, "colour": 1}}}, "found the key 'colour'"),
        (
            {"arms": {"baseline": {"adversarial": False}, "x": {"shares": "true"}}},
            "arm x: found shares 'true', expected one of config, estimate, counted, oracle",
        ),
        (
            {"arms": {"baseline": {"adversarial": False}, "x": {"shares": "oracle"}}},
            "arm x: shares are oracle, expected the experiment to say how many labelled texts",
        ),
        ({"counted": 0}, "counted is 0, expected at least 1"),
        (
            {"arms": {"baseline": {"adversarial": False}, "x": {"config": {"relaxation": -1.0}}}},
            "relaxation is -1.0",
        ),
    ],
)
def test_arms_that_cannot_be_are_refused(
    changes: dict[str, Any], message: str, tiny_model: Path, tmp_path: Path
) -> None:
    path = made_corpora.written_down(tmp_path / "data", tiny_model, **changes)
    assert yaml.safe_load(path.read_text())
    with pytest.raises(ValueError, match=message):
        read_plan(path)
