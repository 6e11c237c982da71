"""What docs/results/ says is what its results render to."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from fastadv.experiments.plan_file import read_plan
from fastadv.experiments.results import Results
from fastadv.experiments.tables import NOT_ALLOWED, all_tables, ranking_table
from fastadv.selection import MEANINGS, ORACLE

RESULTS = Path(__file__).parents[2] / "docs" / "results"
PAGE = RESULTS.parent / "experiments.md"
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


def table_below(header: str) -> Iterator[list[str]]:
    """The cells of the page's table whose first line begins so, that line first."""
    lines = PAGE.read_text("utf-8").splitlines()
    start = next(k for k, line in enumerate(lines) if line.startswith(header))
    for line in (lines[start], *lines[start + 2 :]):
        if not line.startswith("|"):
            return
        yield [cell.strip().strip("`") for cell in line[1:-1].split("|")]


def test_the_recommendation_is_of_all_results() -> None:
    header, *rows = table_below("| | [")
    folders = [re.findall(r"\(results/(.*)/README.md\)", cell)[0] for cell in header[1:]]
    assert sorted(folders) == [folder.name for folder in FOLDERS]
    assert len(rows) > 3
    for column, folder in enumerate(folders, start=1):
        ranking = ranking_table(Results.read(RESULTS / folder / "results.jsonl"))
        both = {row[0]: row[1] for row in ranking.rows}
        both[f"{ORACLE} (not allowed)"] = both[NOT_ALLOWED]
        assert [row[column] for row in rows] == [both[row[0]] for row in rows]


def test_criteria_are_described_as_in_reports() -> None:
    _, *rows = table_below("| criterion | what it looks for")
    described = {name: words for name, words, _ in rows}
    assert described.pop("mean_weights")
    assert described == MEANINGS
