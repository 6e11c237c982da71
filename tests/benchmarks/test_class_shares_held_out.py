"""benchmarks/class_shares/held_out.py, small: cases are what it says, and it runs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tiny
from class_shares import held_out

from fastadv.shares.estimate import estimate_shares

pytestmark = pytest.mark.usefixtures("one_thread")

ENGLISH = np.array([0.25, 0.75])


def predictions(
    counts: tuple[int, int], sure: float, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Of texts of two classes, in which the model is right more often, the surer it is."""
    classes = np.repeat([0, 1], counts)
    logits = np.random.default_rng(seed).normal(size=len(classes)) + sure * (2 * classes - 1)
    p = 1 / (1 + np.exp(-logits))
    return np.stack([1 - p, p], axis=1), classes


@pytest.mark.parametrize(("sure", "trusted"), [(2.0, True), (0.2, False)])
def test_a_case_is_the_estimate_as_it_is_used(sure: float, trusted: bool) -> None:
    dev, target = predictions((60, 180), 2.0), predictions((150, 50), sure, seed=1)
    found = list(held_out.cases_of({"en": dev, "xx": target}, ENGLISH, step=7, seed=0))
    assert [case.name for case in found] == ["en dev, halves, step 7"] * 13 + ["xx, step 7"] * 13
    assert [case.kind for case in found] == 2 * ["as it is", *["shifted"] * 12]
    case = found[13]
    assert case.true.tolist() == [0.75, 0.25]
    assert case.distance(case.english) == 0.5
    used = estimate_shares(*dev, target[0], ENGLISH.tolist())
    np.testing.assert_allclose(case.shares(held_out.USED), used.shares, rtol=1e-12)
    np.testing.assert_array_equal(case.unshrunk, used.unshrunk)
    assert (used.trust > 0.5) is trusted
    always = case.distance(case.shares(held_out.ALL_TRUSTED))
    assert always < (0.1 if trusted else 0.45)


def test_shifts_are_sizeable_and_of_the_texts_that_are_there() -> None:
    rows, classes = predictions((300, 500), 1.0)
    rows = np.hstack([rows, np.zeros((800, 1))])
    chance = np.random.default_rng(0)
    shares = []
    for _ in range(50):
        sample, own = held_out.shifted((rows, classes), 3, chance)
        assert len(sample) == len(own) == held_out.SAMPLE
        assert not (own == 2).any()
        # Rows stay beside their classes.
        mine = {tuple(row) for row in rows[classes == 0]}
        assert {tuple(row) for row in sample[own == 0]} <= mine
        shares.append((own == 0).mean())
    assert np.std(shares) > 0.15


def test_it_prints_both_tables(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = tiny.tiny_folder(tmp_path / "model")
    text = "".join(f"{label}\t{text}\n" for text, label in tiny.ENGLISH * 3)
    for name in ("en.train", "en.dev", "fr.train"):
        (tmp_path / name).write_text(text)
    arguments = ["--data", str(tmp_path), "--languages", "fr", "--model", str(model)]
    small = ["--steps", "1,3", "--batch_size", "2", "--max_length", "16"]
    assert held_out.main([*arguments, *small]) == 0
    lines = capsys.readouterr().out.splitlines()
    names = [
        f"{name}, step {step}, {kind}"
        for step in (1, 3)
        for name in ("en dev, halves", "fr")
        for kind in ("as it is", "shifted")
    ]
    rows = {line[:34].strip(): line[34:].split() for line in lines[2:10]}
    assert [*rows] == names
    # The shares of French are those of English, and 12 shifts are not.
    assert rows["fr, step 3, as it is"][0] == "1" and rows["fr, step 3, as it is"][2] == "0.000"
    assert rows["fr, step 3, shifted"][0] == "12" and float(rows["fr, step 3, shifted"][2]) > 0
    grid = [line[:24].strip() for line in lines[13:]]
    assert grid[0] == "English shares" and grid[-1] == "none"
    assert sum(name.endswith("as used") for name in grid) == 1


def test_missing_text_is_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert held_out.main(["--data", str(tmp_path), "--languages", "fr"]) == 2
    message = capsys.readouterr().err
    assert message.startswith("held_out.py: ") and len(message.splitlines()) == 1
