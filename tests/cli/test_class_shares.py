"""Class shares on the command line: counted, estimated, matched, exported."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import tiny

from fastadv import AdversarialFinetuner
from fastadv.cli import main

pytestmark = pytest.mark.usefixtures("one_thread")
SETTINGS = [
    "--config.steps", "2", "--config.batch_size", "2", "--config.max_length", "16",
    "--config.precision", "fp32", "--train", "en.train", "--dev", "en.train",
]  # fmt: skip
COUNTED = "class shares of de, counted on 4: music 0.57 ± 0.25, weather 0.43 ± 0.25"


@pytest.fixture
def labeled_german(corpus: Path) -> None:
    labels = ("weather", "music", "music", "music")
    lines = (f"{label}\t{text}\n" for label, text in zip(labels, tiny.GERMAN, strict=False))
    (corpus / "de.few").write_text("".join(lines))


@pytest.fixture
def trained(
    model: Path, corpus: Path, labeled_german: None, capsys: pytest.CaptureFixture[str]
) -> str:
    """best/ of a run; what it said on standard error is left to read."""
    options = ["--unlabeled", "de=de.txt", "--unlabeled", "fr=fr.txt", "--test", "de=en.train"]
    shares = ["--class_shares", "de=de.few", "--class_shares", "fr=estimate"]
    shares += ["--match_shares", "de=de.few", "--match_shares", "fr=equal", "--output", "run"]
    assert main(["train", "--model", str(model), *SETTINGS, *options, *shares]) == 0
    return "run/best"


def test_a_few_labelled_texts_are_counted_once_and_their_error_is_said(
    trained: str, capsys: pytest.CaptureFixture[str]
) -> None:
    printed = capsys.readouterr()
    assert printed.err.count(COUNTED) == 1
    rows = [line.split() for line in printed.out.splitlines() if line.startswith("de")]
    assert [row[:2] for row in rows] == [
        ["de", "adversarial"],
        ["de,", "matched"],
        ["de", "always"],
    ]
    tuner = AdversarialFinetuner.from_pretrained(trained)
    assert tuner.config.class_shares == {
        "de": pytest.approx({"music": 8 / 14, "weather": 6 / 14}),
        "fr": "estimate",
    }
    assert tuner.matched["de"].shares == tuner.config.class_shares["de"]
    assert tuner.matched["fr"].shares == {"weather": 0.5, "music": 0.5}
    assert "de.few" in Path("run/run.yaml").read_text()


def test_predictions_in_a_language(trained: str, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    assert main(["predict", "--model", trained, "--input", "de.txt", "--language", "de"]) == 0
    said = [json.loads(line)["probabilities"] for line in capsys.readouterr().out.splitlines()]
    mean = np.mean([[*one.values()] for one in said], axis=0)
    np.testing.assert_allclose(mean, [8 / 14, 6 / 14], atol=2e-3)
    assert main(["predict", "--model", trained, "--input", "de.txt", "--language", "ru"]) == 2
    assert "no matched predictions in the language 'ru'" in capsys.readouterr().err


def test_predictions_matched_on_the_input(trained: str, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    options = ["--input", "fr.txt", "--match_shares"]
    assert main(["predict", "--model", trained, *options, "equal"]) == 0
    said = [json.loads(line)["probabilities"] for line in capsys.readouterr().out.splitlines()]
    mean = np.mean([[*one.values()] for one in said], axis=0)
    np.testing.assert_allclose(mean, [0.5, 0.5], atol=2e-3)
    assert main(["predict", "--model", trained, *options, "de.few"]) == 0
    said = [json.loads(line)["probabilities"] for line in capsys.readouterr().out.splitlines()]
    tuner = AdversarialFinetuner.from_pretrained(trained)
    tuner.calibrate({"de": "de.few"})
    for one, expected in zip(said, tuner.predict(tiny.FRENCH, "de"), strict=True):
        assert one == pytest.approx(expected.probabilities, abs=1e-5)
    options += ["estimate"]
    assert main(["predict", "--model", trained, *options, "--dev", "en.train"]) == 0
    capsys.readouterr()
    assert main(["predict", "--model", trained, *options]) == 2
    assert "match_shares is to be estimated and there is no dev" in capsys.readouterr().err
    assert main(["predict", "--model", trained, "--match_shares", "equal"]) == 2
    assert "--match_shares reads the input twice, expected a file" in capsys.readouterr().err
    assert main(["predict", "--model", trained, *options, "--language", "de"]) == 2
    assert "found --language and --match_shares, expected one" in capsys.readouterr().err


def test_scores_stand_beside_those_of_matched_predictions(
    trained: str, capsys: pytest.CaptureFixture[str]
) -> None:
    capsys.readouterr()
    test = ["--test", "de=de.few", "--test", "en=en.train", "--json"]
    assert main(["evaluate", "--model", trained, *test]) == 0
    kept = json.loads(capsys.readouterr().out)
    assert kept.keys() == {"de", "de, matched", "en"}
    given = ["--match_shares", "de=equal", "--unlabeled", "de=de.txt"]
    assert main(["evaluate", "--model", trained, *test, *given]) == 0
    assert json.loads(capsys.readouterr().out).keys() == kept.keys()
    assert main(["evaluate", "--model", trained, *test, "--match_shares", "equal"]) == 0
    assert json.loads(capsys.readouterr().out).keys() == {*kept, "en, matched"}
    assert main(["evaluate", "--model", trained, *test, "--match_shares", "ru=equal"]) == 2
    assert "--match_shares names 'ru', expected the name of a --test" in capsys.readouterr().err


def test_a_model_for_one_language(trained: str, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["export", "--model", trained, "--language", "de", "--output", "german"]
    assert main(options) == 0
    capsys.readouterr()
    said = []
    for given in (["--model", "german"], ["--model", trained, "--language", "de"]):
        assert main(["predict", "--input", "de.txt", *given]) == 0
        lines = capsys.readouterr().out.splitlines()
        said.append([json.loads(line)["probabilities"]["music"] for line in lines])
    assert said[0] == pytest.approx(said[1], abs=1e-5)
    assert main(options) == 2
    assert "german: found something there, expected a new folder" in capsys.readouterr().err
    assert main([*options[:4], "ru", "--output", "russian"]) == 2
    assert "in the language 'ru'" in capsys.readouterr().err and not Path("russian").exists()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["--class_shares", "equal"], "--class_shares is 'equal', expected ignore, estimate, or"),
        (["--class_shares", "de="], "--class_shares is 'de=', expected ignore, estimate, or LANG"),
        (
            ["--class_shares", "de=estimate", "--class_shares", "de=de.few"],
            "--class_shares names 'de' twice",
        ),
        (["--match_shares", "de=missing"], "missing: "),
        (
            ["--class_shares", "estimate", "--config.class_shares", "estimate"],
            "found --class_shares and --config.class_shares, expected one of them",
        ),
        (["--class_shares", "de=de.txt"], "de.txt:1"),
    ],
)
def test_malformed_shares_are_refused(
    given: list[str],
    message: str,
    model: Path,
    corpus: Path,
    labeled_german: None,
    capsys: pytest.CaptureFixture[str],
) -> None:
    options = ["--unlabeled", "de=de.txt", "--output", "run", *given]
    assert main(["train", "--model", str(model), *SETTINGS, *options]) == 2
    error = capsys.readouterr().err
    assert message in error and len(error.splitlines()) == 1, error
    assert not Path("run").exists()
