"""The pretraining benchmark compares before it times."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from types import ModuleType

import pytest
import torch

from fastadv.pretraining.model import MaskedLanguageModel

pytestmark = pytest.mark.usefixtures("one_thread")

SMALL = [
    *("--rounds", "1", "--steps", "1", "--tokens", "256", "--vocabulary", "300"),
    *("--no-compile", "--device", "cpu"),
]


@pytest.fixture
def bench() -> ModuleType:
    return importlib.import_module("pretrain_time")


def test_it_times_what_agrees(
    bench: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert bench.main([*SMALL, "--json", str(tmp_path / "out.json")]) == 0
    printed = capsys.readouterr().out
    assert "results agree" in printed and printed.count("times as fast") == 2
    report = json.loads((tmp_path / "out.json").read_text())
    assert report["passed"] and set(report["seconds"]) == {"ours", "transformers", "masked"}
    assert report["tokens_per_second"]["ours"] == pytest.approx(256 / report["seconds"]["ours"][0])


def test_no_ratio_of_a_wrong_result(
    bench: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    right = MaskedLanguageModel.token_losses

    def wrong(self: MaskedLanguageModel, batch: object) -> torch.Tensor:
        return 1.05 * right(self, batch)  # type: ignore[arg-type]

    monkeypatch.setattr(MaskedLanguageModel, "token_losses", wrong)
    assert bench.main(SMALL) == 1
    printed = capsys.readouterr().out
    assert "WRONG RESULTS" in printed and "times as fast" not in printed
