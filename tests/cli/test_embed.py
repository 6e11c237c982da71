"""`fastadv embed` and `fastadv align`."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import tiny
from cli_helpers import contents

from fastadv.cli import main
from fastadv.cli.embed import write_array
from fastadv.embedder import Embedder
from fastadv.tasks.metrics import median_cosine, retrieval_accuracy

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def expected(model: Path) -> np.ndarray:
    return Embedder.from_pretrained(model).embed(tiny.GERMAN)


def test_array(model: Path, corpus: Path, expected: np.ndarray) -> None:
    options = ["--input", "de.txt", "--output", "de.npy", "--chunk_size", "2"]
    assert main(["embed", "--model", str(model), *options]) == 0
    found = np.load("de.npy")
    assert found.dtype == np.float32 and found.shape == expected.shape
    # The same up to which texts share a padded batch. bfloat16, where the machine has it, keeps
    # 8 bits: 2^-8 of values of about 1.
    np.testing.assert_allclose(found, expected, atol=2e-2)


def test_lines(
    model: Path, corpus: Path, expected: np.ndarray, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["embed", "--model", str(model), "--input", "de.txt"]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["text"] for line in lines] == tiny.GERMAN
    # One chunk, so the very same batches: nine digits give back every float32.
    rows = np.array([line["embedding"] for line in lines], np.float32)
    np.testing.assert_array_equal(rows, expected)


def test_a_finetuned_model_embeds_as_well(classifier: Path, corpus: Path) -> None:
    options = ["--input", "de.txt", "--output", "de.npy"]
    assert main(["embed", "--model", str(classifier), *options]) == 0
    assert np.load("de.npy").shape == (len(tiny.GERMAN), 32)


@pytest.mark.parametrize("sizes", [[1], [3, 3, 1], [1000, 1000, 234]])
def test_array_in_pieces(sizes: list[int], tmp_path: Path) -> None:
    rows = np.arange(sum(sizes) * 5, dtype=np.float32).reshape(-1, 5)
    write_array(str(tmp_path / "x.npy"), iter(np.split(rows, np.cumsum(sizes)[:-1])))
    np.testing.assert_array_equal(np.load(tmp_path / "x.npy"), rows)


def test_a_broken_input_leaves_no_array(
    model: Path, corpus: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (corpus / "bad.txt").write_bytes(b"one\ntwo\nthr\xffee\n")
    (corpus / "x.npy").write_bytes(b"before")
    before = contents(corpus)
    options = ["--input", "bad.txt", "--output", "x.npy", "--chunk_size", "1"]
    assert main(["embed", "--model", str(model), *options]) == 2
    assert "bad.txt:3" in capsys.readouterr().err
    assert contents(corpus) == before


def test_align(model: Path, corpus: Path, capsys: pytest.CaptureFixture[str]) -> None:
    english = [text for text, _ in tiny.ENGLISH[:5]]
    (corpus / "en.txt").write_text("\n".join([*english, ""]) + "\n")
    (corpus / "de.txt").write_text("\n".join([*tiny.GERMAN, "ohne Partner"]) + "\n")
    options = ["--model", str(model), "--source", "en.txt", "--target", "de.txt"]
    assert main(["align", *options, "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    embedder = Embedder.from_pretrained(model)
    source, target = embedder.embed(english), embedder.embed(tiny.GERMAN)
    assert facts == {
        "pairs": 5,
        "median_cosine": median_cosine(source, target),
        "source_to_target": retrieval_accuracy(source, target),
        "target_to_source": retrieval_accuracy(target, source),
    }
    assert main(["align", *options]) == 0
    printed = [line.rpartition(" ")[2] for line in capsys.readouterr().out.splitlines()]
    assert printed == ["5", *(f"{v:.4f}" for v in list(facts.values())[1:])]


def test_align_of_a_text_with_itself(
    model: Path, corpus: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--model", str(model), "--source", "de.txt", "--target", "de.txt", "--json"]
    assert main(["align", *options]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["source_to_target"] == facts["target_to_source"] == 1
    assert facts["median_cosine"] == pytest.approx(1, abs=1e-12)  # float64 sums of 32 products
