"""Tables from results whose numbers are known."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

import pytest
from result_lines import LINES, RESULTS

from fastadv.experiments import paper
from fastadv.experiments.arm_tables import scores_by_language
from fastadv.experiments.results import Results, mean_and_deviation
from fastadv.experiments.tables import (
    NOT_ALLOWED,
    Table,
    alignment_table,
    all_tables,
    criteria_table,
    discriminator_table,
    effect_table,
    ranking_table,
    score_table,
)


def row(table: Table, name: str) -> list[str]:
    return next(cells for first, *cells in table.rows if first == name)


def test_scores_are_means_and_deviations_at_the_step_chosen_on_english_dev() -> None:
    table = score_table(RESULTS)
    assert table.header == ["", "en", "de", "mean of targets"]
    # 0.60 and 0.64; 0.65 and 0.66; by seed +0.05 and +0.02.
    assert row(table, "baseline") == ["40.0 ± 0.0", "62.0 ± 2.8", "62.0 ± 2.8"]
    assert row(table, "adversarial") == ["-", "65.5 ± 0.7", "65.5 ± 0.7"]
    assert row(table, "difference, paired by seed") == ["-", "+3.5 ± 2.1", "+3.5 ± 2.1"]
    assert "2 seeds" in table.title


def test_what_the_commonest_class_would_score_stands_above_our_rows() -> None:
    def noted(line: dict[str, Any]) -> dict[str, Any]:
        source = {"en": {"accuracy": 0.4}} if line["condition"] == "baseline" else {}
        tests = source | {"de": {"accuracy": 0.255}}
        return {**line, "majority": {"label": "NET", "dev": {"accuracy": 0.3}, "test": tests}}

    table = score_table(Results([noted(line) for line in LINES]), "mldoc")
    name = "always NET, the commonest in training"
    assert row(table, name) == ["40.0", "25.5", "25.5"]
    assert [cells[0] for cells in table.rows][2:4] == [name, "baseline"]
    languages = scores_by_language(Results([noted(line) for line in LINES]), "last")
    assert languages.rows[0] == [name, "25.5", "25.5"]
    # Lines of before it was noted, and those of named entities.
    assert "always" not in score_table(RESULTS).markdown()
    assert "always" not in score_table(Results([{**n, "majority": None} for n in LINES])).markdown()
    some = Results([noted(line) for line in LINES if line["condition"] == "adversarial"])
    assert row(score_table(some), name) == ["-", "25.5", "25.5"]


def test_criteria_beside_the_oracle() -> None:
    table = criteria_table(RESULTS, "baseline")
    assert row(table, "last") == ["60.0 ± 14.1", "60.0 ± 14.1", "7.0 ± 9.9"]
    assert row(table, "information") == row(table, "last")
    assert row(table, NOT_ALLOWED) == ["67.0 ± 4.2", "67.0 ± 4.2", "0.0 ± 0.0"]
    assert row(table, "mean_weights")[0] == "40.0 ± 0.0"
    names = [cells[0] for cells in table.rows]
    assert names[-1] == NOT_ALLOWED and "not allowed" in NOT_ALLOWED
    # What was not measured has no row.
    assert "entropy" not in names and "discriminator_near_chance" not in names
    adversarial = criteria_table(RESULTS, "adversarial")
    assert "discriminator_near_chance" in [cells[0] for cells in adversarial.rows]


def test_criteria_by_what_they_get_in_both_conditions() -> None:
    table = ranking_table(RESULTS)
    assert table.header == [
        "criterion", "both", "baseline", "adversarial", "better", "worse", "same"
    ]  # fmt: skip
    wanted = {
        # At the steps of English dev 0.60 and 0.64; 0.65 and 0.66.
        "english_dev": (63.75, ["62.0", "65.5", "-", "-", "-"]),
        # 0.70 and 0.50; 0.65 and 0.66, which are English dev's too.
        "last": (62.75, ["60.0", "65.5", "1", "1", "2"]),
        # 0.70 and 0.50; 0.75 and 0.30.
        "information": (56.25, ["60.0", "52.5", "2", "2", "0"]),
        "mean_weights": (40, ["40.0", "40.0", "0", "4", "0"]),
        # 0.70 and 0.64; 0.75 and 0.66.
        NOT_ALLOWED: (68.75, ["67.0", "70.5", "2", "0", "2"]),
    }
    for name, (both, others) in wanted.items():
        first, *found = row(table, name)
        # Printed to one digit; these lie in the middle of two.
        assert float(first) == pytest.approx(both, abs=0.051)
        assert found == others
    assert row(table, "discriminator_near_chance")[:3] == ["-", "-", "52.5"]
    names = [cells[0] for cells in table.rows]
    both = [float(cells[1]) for cells in table.rows[:-2]]
    assert both == sorted(both, reverse=True)
    assert names[-2:] == ["discriminator_near_chance", NOT_ALLOWED]


def test_criteria_of_some_languages_alone_are_not_ranked() -> None:
    french = {**LINES[0], "languages": ["de", "fr"]}
    french["averaged"] = {"test": {n: {"accuracy": 0.4} for n in ("en", "de", "fr")}}
    french["evaluations"] = [
        {**e, "test": {**e["test"], "fr": {"accuracy": 0.5}}} for e in french["evaluations"]
    ]
    table = ranking_table(Results([french]))
    assert [cells[0] for cells in table.rows] == [
        "english_dev", "last", "mean_weights", NOT_ALLOWED
    ]  # fmt: skip


def test_the_effect_is_paired_by_seed_under_every_criterion() -> None:
    table = effect_table(RESULTS)
    # By seed -0.05 and +0.16 at the last step; +0.05 and -0.34 at the adversary's first.
    assert row(table, "last") == ["+5.5 ± 14.8", "+5.5 ± 14.8"]
    assert row(table, "information") == ["-7.5 ± 17.7", "-7.5 ± 17.7"]
    assert row(table, "mean_weights")[0] == "+0.0 ± 0.0"
    assert row(table, NOT_ALLOWED) == ["+3.5 ± 2.1", "+3.5 ± 2.1"]
    # A baseline has no discriminator, so the two cannot be compared by it.
    assert "discriminator_near_chance" not in [cells[0] for cells in table.rows]


def test_alignment_before_and_after() -> None:
    table = alignment_table(RESULTS)
    assert table.rows == [
        ["before finetuning", "0.500"],
        ["without adversary", "0.800 ± 0.141"],
        ["with adversary", "0.900 ± 0.000"],
    ]
    beside = alignment_table(RESULTS, "mldoc")
    assert beside.rows[0] == ["Without Adv. (paper)", "0.74"]
    assert len(beside.rows) == 5


def test_the_discriminator_has_no_row_of_the_baseline() -> None:
    table = discriminator_table(RESULTS)
    assert row(table, "discriminator's accuracy, after") == ["0.750 ± 0.000"]
    assert row(table, "discriminator's loss, after") == ["-"]


@pytest.mark.parametrize("corpus", ["mldoc", "conll"])
def test_the_papers_rows_stand_first(corpus: str) -> None:
    table = score_table(RESULTS, corpus)
    assert [cells[0] for cells in table.rows[:2]] == [paper.WITHOUT, paper.WITH]
    assert table.rows[0][1] == {"mldoc": "94.2", "conll": "91.1"}[corpus]
    assert table.rows[1][1:3] == ["-", {"mldoc": "88.1", "conll": "71.9"}[corpus]]


def test_the_papers_numbers_are_whole() -> None:
    """Sums over the printed rows of Tables 1 to 3, added up by hand."""
    sums = {
        (corpus, name): round(sum(values.values()), 1)
        for corpus, rows in paper.SCORES.items()
        for name, values in rows.items()
    }
    assert sums == {
        ("mldoc", paper.WITHOUT): 605.8,
        ("mldoc", paper.WITH): 565.8,
        ("conll", paper.WITHOUT): 312.2,
        ("conll", paper.WITH): 223.8,
    }
    assert [round(sum(v.values()), 2) for v in paper.ALIGNMENT.values()] == [4.98, 6.38]


def test_unfinished_experiments_have_tables_of_what_there_is() -> None:
    tables = all_tables(Results(LINES[:1]))
    assert "criteria_adversarial" not in tables and "effect" not in tables
    assert row(tables["criteria"], "last") == ["-", "70.0", "-", "1", "0", "0"]
    assert row(tables["scores"], "baseline") == ["40.0", "60.0", "60.0"]
    assert row(tables["scores"], "adversarial") == ["-", "-", "-"]


def test_markdown_and_csv_hold_the_same_cells() -> None:
    table = criteria_table(RESULTS, "adversarial")
    read = list(csv.reader(io.StringIO(table.csv())))
    assert read == [table.header, *table.rows]
    markdown = [line for line in table.markdown().splitlines() if line.startswith("|")]
    split = [[cell.strip() for cell in line[1:-1].split("|")] for line in markdown]
    assert [split[0], *split[2:]] == read


def test_a_single_value_has_no_deviation() -> None:
    assert mean_and_deviation([0.5]) == (0.5, None)
    assert mean_and_deviation([1.0, 3.0]) == (2.0, pytest.approx(2**0.5))


def test_results_of_two_experiments_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "results.jsonl"
    path.write_text("".join(json.dumps(x) + "\n" for x in (LINES[0], {**LINES[1], "model": "m"})))
    with pytest.raises(ValueError, match=r"results\.jsonl: .*expected those of one experiment"):
        Results.read(path)
    path.write_text("")
    with pytest.raises(ValueError, match="found no finished run"):
        Results.read(path)
