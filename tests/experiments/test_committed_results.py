"""What docs/results/ says is what its results render to."""

from __future__ import annotations

from pathlib import Path

import pytest

from fastadv.experiments.plan_file import read_plan
from fastadv.experiments.results import Results
from fastadv.experiments.tables import all_tables

RESULTS = Path(__file__).parents[2] / "docs" / "results"
FOLDERS = sorted(path.parent for path in RESULTS.glob("*/plan.yaml"))


def test_there_are_some() -> None:
    assert FOLDERS


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_every_run_of_the_plan_is_there(folder: Path) -> None:
    plan, results = read_plan(folder / "plan.yaml"), Results.read(folder / "results.jsonl")
    assert [line["run"] for line in results.lines] == [run.name for run in plan.runs()]
    assert len(plan.seeds) >= 4
    assert (results.experiment, results.model, results.task) == (plan.name, plan.model, plan.task)
    config = plan.config
    steps = [*range(0, config.steps, config.eval_every), config.steps]
    for line in results.lines:
        assert [e["step"] for e in line["evaluations"]] == steps


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_tables_are_those_of_the_results(folder: Path) -> None:
    tables = all_tables(Results.read(folder / "results.jsonl"))
    rendered = "\n".join(table.markdown() for table in tables.values())
    assert (folder / "tables.md").read_text("utf-8") == rendered


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_rows_on_the_page_are_rows_of_the_tables(folder: Path) -> None:
    known = set((folder / "tables.md").read_text("utf-8").splitlines())
    page = (folder / "README.md").read_text("utf-8").splitlines()
    rows = [line for line in page if line.startswith("|")]
    assert rows
    for row in rows:
        assert row in known
