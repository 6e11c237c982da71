"""What an experiment found, in sentences."""

from __future__ import annotations

from result_lines import LINES, RESULTS, line

from fastadv.experiments.results import Results
from fastadv.experiments.summary import sentences


def test_each_number_is_that_of_the_tables() -> None:
    effect, criteria, languages, alignment = sentences(RESULTS)
    # By seed +0.05 and +0.02 on English dev; -0.05 and +0.16 at the last step.
    assert effect == (
        "Adversarial less baseline, mean of the targets in points: +3.5 ± 2.1 (english_dev), "
        "+5.5 ± 14.8 (last); over 2 seeds, runs paired by seed."
    )
    assert criteria == (
        # 63.75 and 68.75, in floats a little less and a little more.
        "Of the criteria for a step english_dev gets most: 63.7; oracle (not allowed: reads "
        "target labels) 68.8."
    )
    assert languages == (
        "After the last step the discriminator is right on 75.0% of held-out text; a probe "
        "trained afresh on 90.0%, and without the adversary on 90.0%."
    )
    assert alignment == (
        "The median cosine of translations goes from 0.50 to 0.80 without the adversary and "
        "0.90 with it."
    )


def test_the_papers_criterion_stands_beside_a_better_one() -> None:
    better = line("adversarial", 0, (0.9, 0.9, 0, 0.5), (0.9, 0.50, 1, 0.6), (0.7, 0.90, 2, 0.7))
    found = sentences(Results([LINES[0], better]))
    assert any("step last gets most: 80.0; english_dev 55.0; oracle" in said for said in found)


def test_nothing_is_said_of_what_is_not_there_yet() -> None:
    assert sentences(Results(LINES[:1])) == []
