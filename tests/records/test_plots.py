"""What is in the figure; how it looks was judged by eye, in colour and in grey."""

from __future__ import annotations

import itertools
import math
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fastadv.records.history import History

matplotlib = pytest.importorskip("matplotlib")

from fastadv.records import plots  # noqa: E402  the skip stands above what needs matplotlib

LANGUAGES = ("en", "de", "es", "fr", "it", "ja", "ru", "zh")
BASELINE, ADVERSARIAL = "without adversary (baseline)", "with adversary"


def history(
    adversarial: bool, tests: tuple[str, ...], dev: bool = True, metric: str = "accuracy"
) -> History:
    """200 steps, evaluated every 50; the score of step s in language k is (s + k) / 1000."""
    records: list[dict[str, Any]] = []
    for step in range(0, 201, 2):
        if step:
            record = {"kind": "train", "step": step, "loss_task": 2 - step / 200}
            if adversarial:
                record |= {"loss_discriminator": 1.2, "loss_generator": 1.5}
                record |= {"discriminator_accuracy": 0.7}
            records.append(record)
        if step % 50 == 0:
            test = {name: {metric: (step + k) / 1000} for k, name in enumerate(tests)}
            records.append({"kind": "eval", "step": step, "test": test})
            if dev:
                records[-1]["dev"] = {metric: 0.9 if step == 150 else 0.8}
    return History(records, 150 if dev else None, 0.9 if dev else None)


@pytest.fixture
def figures(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Any]]:
    """Figures stay open to be looked into, and are closed afterwards."""
    pyplot = plots.pyplot()
    close, made = pyplot.close, []
    monkeypatch.setattr(pyplot, "close", made.append)
    yield made
    for figure in made:
        close(figure)


def panels(figure: Any) -> dict[str, Any]:
    return {axis.get_title(): axis for axis in figure.axes}


def lines(axis: Any) -> dict[str, Any]:
    return {line.get_label(): line for line in axis.lines}


def test_eight_languages_with_and_without_the_adversary(tmp_path: Path, figures: list[Any]) -> None:
    histories = {"baseline": history(False, LANGUAGES), "adversarial": history(True, LANGUAGES)}
    histories["adversarial"].best_step = 100
    plots.plot_curves(tmp_path / "new" / "curves.png", histories, "classification")
    assert (tmp_path / "new" / "curves.png").read_bytes().startswith(b"\x89PNG")
    (figure,) = figures
    found = panels(figure)
    assert list(found) == [
        "dev (selects the step)", *LANGUAGES, "task loss",
        "adversarial losses (grey: D guesses)", "discriminator (grey: guessing)",
    ]  # fmt: skip
    for number, language in enumerate(LANGUAGES):
        shown = lines(found[language])
        for run in (BASELINE, ADVERSARIAL):
            steps, scores = shown[run].get_data()
            assert list(steps) == [0, 50, 100, 150, 200]
            assert list(scores) == [(step + number) / 1000 for step in steps]
        rings = [line for line in found[language].lines if line.get_markersize() > 6]
        selected = [(step, (step + number) / 1000) for step in (150, 100)]
        assert [(r.get_xdata()[0], r.get_ydata()[0]) for r in rings] == selected
    assert len({found[name].get_ylim() for name in LANGUAGES}) == 1, "one axis for all scores"
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == [
        BASELINE, ADVERSARIAL, "step selected on dev",
    ]  # fmt: skip
    assert all(axis.get_legend() is None for axis in figure.axes)


def test_losses_and_discriminator(tmp_path: Path, figures: list[Any]) -> None:
    histories = {"baseline": history(False, ("de",)), "adversarial": history(True, ("de",))}
    plots.plot_curves(tmp_path / "curves.png", histories, "classification")
    found = panels(figures[0])
    steps, values = lines(found["task loss"])[BASELINE].get_data()
    # 100 records in groups of 3: each point the mean of its group.
    assert len(steps) == 34 and steps[0] == 4
    assert values[0] == pytest.approx(2 - 4 / 200)
    losses = found["adversarial losses (grey: D guesses)"]
    discriminator, generator, guessing = losses.lines
    for line, loss in ((discriminator, 1.2), (generator, 1.5), (guessing, 2 * math.log(2))):
        assert list(line.get_ydata()) == pytest.approx([loss] * len(line.get_ydata()))
    names = {text.get_text(): text.get_verticalalignment() for text in losses.texts}
    assert names == {"$L_D$": "top", "$L_G$": "bottom"}
    shown, chance = found["discriminator (grey: guessing)"].lines
    assert shown.get_label() == ADVERSARIAL and set(chance.get_ydata()) == {0.5}


def test_relaxed_losses_have_another_line_where_it_guesses(
    tmp_path: Path, figures: list[Any]
) -> None:
    histories = {"adversarial": history(True, ("de",))}
    plots.plot_curves(tmp_path / "curves.png", histories, "classification", relaxation=0.5)
    guessing = panels(figures[0])["adversarial losses (grey: D guesses)"].lines[-1]
    # p = 0.4 for every text: -log p - log(1 - p).
    wanted = -math.log(0.4) - math.log(0.6)
    assert list(guessing.get_ydata()) == pytest.approx([wanted, wanted])


def test_systems_differ_without_colour(tmp_path: Path, figures: list[Any]) -> None:
    """In line and in marker, and the letters come out as they are: the figure is page-wide."""
    histories = {"baseline": history(False, ("de",)), "adversarial": history(True, ("de",))}
    histories["other"] = history(False, ("de",))
    plots.plot_curves(tmp_path / "curves.png", histories, "classification")
    shown = [lines(panels(figures[0])["de"])[run] for run in (BASELINE, ADVERSARIAL, "other")]
    for one, other in itertools.combinations(shown, 2):
        assert one.get_linestyle() != other.get_linestyle()
        assert one.get_marker() != other.get_marker()
        assert one.get_color() != other.get_color()
    width, _ = figures[0].get_size_inches()
    letters = [t.get_size() for axis in figures[0].axes for t in (axis.title, axis.xaxis.label)]
    letters += [t.get_size() for axis in figures[0].axes for t in axis.get_xticklabels()]
    assert width <= 7 and min(letters) >= 7
    pixels = matplotlib.image.imread(tmp_path / "curves.png").shape[1]
    assert pixels == round(200 * width)


@pytest.mark.parametrize(("adversarial", "tests", "dev", "expected"), [
    (True, ("de",), False, ["de", "task loss", "adversarial losses (grey: D guesses)",
                            "discriminator (grey: guessing)"]),
    (False, ("de",), True, ["dev (selects the step)", "de", "task loss"]),
    (True, (), False, ["task loss", "adversarial losses (grey: D guesses)",
                       "discriminator (grey: guessing)"]),
    (False, (), False, ["task loss"]),
])  # fmt: skip
def test_one_history(
    adversarial: bool,
    tests: tuple[str, ...],
    dev: bool,
    expected: list[str],
    tmp_path: Path,
    figures: list[Any],
) -> None:
    name = "adversarial" if adversarial else "baseline"
    shown = {name: history(adversarial, tests, dev, metric="f1")}
    plots.plot_curves(tmp_path / "curves.png", shown, "ner")
    assert list(panels(figures[0])) == expected
    if tests:
        assert figures[0].axes[0].get_ylabel() == "F1"


def test_runs_may_differ_in_their_test_sets(tmp_path: Path, figures: list[Any]) -> None:
    histories = {
        "baseline": history(False, ("de",), dev=False),
        "adversarial": history(True, ("fr",)),
    }
    plots.plot_curves(tmp_path / "curves.png", histories, "classification")
    found = panels(figures[0])
    assert list(lines(found["de"])) == [BASELINE]
    assert next(iter(lines(found["fr"]))) == ADVERSARIAL


def test_nothing_to_plot(tmp_path: Path) -> None:
    warning = {"kind": "warning", "step": 1, "message": "words"}
    with pytest.raises(ValueError, match="found no training or evaluation records, expected some"):
        plots.plot_curves(tmp_path / "c.png", {"baseline": History([warning])}, "ner")


def test_matplotlib_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)  # type: ignore[arg-type]
    with pytest.raises(ImportError, match=r"pip install 'fastadv\[demo\]'"):
        plots.plot_curves(tmp_path / "c.png", {"baseline": history(False, ("de",))}, "ner")
