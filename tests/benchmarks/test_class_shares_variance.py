"""benchmarks/class_shares/variance.py, small: gradients, fit and ways are what it says."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
from class_shares import variance

from fastadv.ops.linear_bce import discriminator_loss, linear_bce

pytestmark = pytest.mark.usefixtures("one_thread")


def made_up(texts: int = 200, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Features (N, 6), a third of class 0, which is further along the first one; target weights."""
    classes = (np.arange(texts) % 3 > 0).astype(np.int64)
    features = np.random.default_rng(seed).normal(size=(texts, 6)) + 2
    features[:, 0] += 4 * (classes == 0)
    shares = np.array([0.8, 0.2])
    weights = (shares / (np.bincount(classes) / texts))[classes]
    return features, classes, weights


def test_gradients_are_those_of_the_loss() -> None:
    features, _, weights = made_up(12)
    at = np.linspace(-0.5, 0.5, 7)
    weight = torch.from_numpy(at[:-1].copy()).requires_grad_()
    bias = torch.from_numpy(at[-1:].copy()).requires_grad_()
    h = torch.from_numpy(features)
    loss, _ = linear_bce(h, weight, bias, torch.ones(12).double(), torch.from_numpy(weights))
    loss.backward()
    found = weights @ variance.gradients(features, at)
    np.testing.assert_allclose(found[:-1], weight.grad.numpy(), rtol=1e-12)
    np.testing.assert_allclose(found[-1:], bias.grad.numpy(), rtol=1e-12)


def test_the_fitted_discriminator_has_no_gradient_left() -> None:
    features, _, _ = made_up(40)
    others = np.random.default_rng(1).normal(size=(30, 6)) + 1.5
    found, right = variance.fit(features, np.ones(40), others)
    weight = torch.from_numpy(found[:-1].copy()).requires_grad_()
    bias = torch.from_numpy(found[-1:].copy()).requires_grad_()
    h = torch.from_numpy(np.vstack([features, others]))
    english = torch.arange(70) < 40
    loss, logits = discriminator_loss(h, english, weight, bias)
    (loss + variance.RIDGE * (weight**2).sum() / 2).backward()
    assert weight.grad.abs().max() < 1e-7 and bias.grad.abs().max() < 1e-7
    told = ((logits > 0) == english).double()
    assert right == pytest.approx(float(told[:40].mean() + told[40:].mean()) / 2)
    assert 0.5 < right < 1


def test_drawing_varies_less_than_weighting_and_both_are_unbiased() -> None:
    features, classes, weights = made_up()
    rows = variance.gradients(features, np.zeros(7))
    draws = variance.ways(classes, np.array([0.8, 0.2]), seed=0)
    found = variance.compare(rows, weights, draws, Namespace(batches=1500, batch_size=8))
    ordinary, golden = found["as it comes"], found["drawn, golden ratio"]
    assert ordinary.bias > 20 * ordinary.chance
    for name in ("drawn, golden ratio", "drawn, independent", "weighted"):
        assert found[name].bias < 4 * found[name].chance, name
    assert golden.variance < 0.9 * found["drawn, independent"].variance
    assert found["drawn, independent"].variance < 0.5 * found["weighted"].variance
    # A ratio of two sums is biased, but varies less.
    assert found["weighted"].bias < found["weighted, normalised"].bias < ordinary.bias
    assert found["weighted, normalised"].variance < found["weighted"].variance


def test_it_prints_shares_and_a_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = str(tiny.tiny_folder(tmp_path / "model"))
    small = ["--model", model, "--batches", "20", "--batch_size", "4"]
    assert variance.main([*small, "--languages", "de,es"]) == 0
    printed = capsys.readouterr().out
    for language in ("de", "es"):
        assert f"{language}: GAMES 0.25 to 0.40, MEDIA 0.25 to 0.30, NET 0.25 to 0.20" in printed
    (tmp_path / "en.train").write_text("A\train falls\nB\ta song\n" * 6)
    (tmp_path / "fr.train").write_text("A\tla pluie\nA\tle port\nB\tle piano\n", "utf-8")
    assert variance.main([*small, "--data", str(tmp_path), "--languages", "fr"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("fr: A 0.50 to 0.67, B 0.50 to 0.33; ")
    assert lines[1].split() == ["fr,", "start", "fr,", "fitted"]
    assert lines[2].split() == ["variance", "bias", "variance", "bias"]
    assert [line[:22].strip() for line in lines[3:-1]] == [
        "as it comes", "drawn, golden ratio", "drawn, independent", "weighted",
        "weighted, normalised",
    ]  # fmt: skip
    assert lines[3].split()[3::2] == ["1.00", "1.00"]


def test_a_class_that_english_lacks_is_one_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "en.train").write_text("A\train falls\nB\ta song\n" * 6)
    (tmp_path / "fr.train").write_text("A\tla pluie\nC\tle port\n", "utf-8")
    arguments = ["--data", str(tmp_path), "--languages", "fr"]
    assert variance.main(arguments) == 2
    assert capsys.readouterr().err == (
        "variance.py: found texts of C in fr, expected the classes of English: A, B\n"
    )
