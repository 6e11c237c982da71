"""benchmarks/optimiser_error.py and optimiser_time.py, small: what they claim and how they fail."""

from __future__ import annotations

import importlib
import json
import lzma
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[2]
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *(f"w{i}" for i in range(300))]


@pytest.fixture
def benchmarks() -> Iterator[None]:
    yield
    for name in ("optimiser_error", "optimiser_time"):
        sys.modules.pop(name, None)


@pytest.fixture
def error(benchmarks: None) -> ModuleType:
    return importlib.import_module("optimiser_error")


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Texts whose words are seldom or often: word i stands in every (i + 1)th line."""
    for folder in ("text", "mbert_vocab"):
        (tmp_path / folder).mkdir()
    (tmp_path / "mbert_vocab" / "vocab.txt").write_text("\n".join(WORDS) + "\n")
    for offset, language in ((0, "en"), (150, "de")):
        lines = [
            " ".join(f"w{offset + i}" for i in range(150) if line % (i + 1) == 0)
            for line in range(1, 400)
        ]
        with lzma.open(tmp_path / "text" / f"{language}.txt.xz", "wt") as file:
            file.write("\n".join(lines) + "\n")
    return tmp_path


def test_deferred_steps_err_less_than_dense_ones_and_both_less_than_torch(
    error: ModuleType, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    report_file = tmp_path / "report.json"
    assert error.main(["--data", str(data), "--steps", "120", "--json", str(report_file)]) == 0
    report = json.loads(report_file.read_text())
    last = {
        name: {group: values[-1] for group, values in groups.items()}
        for name, groups in report["errors"].items()
    }
    for group in error.GROUPS:
        assert 0 < last["deferred"][group] <= last["dense"][group], group
        assert last["torch float32"][group] >= 10 * last["deferred"][group], group
    assert 0 < report["rows_a_batch"] < report["rows"]
    assert "torch float32" in capsys.readouterr().out


def test_plot(error: ModuleType, data: Path, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    plot = tmp_path / "plot.png"
    assert error.main(["--data", str(data), "--steps", "3", "--plot", str(plot)]) == 0
    assert plot.read_bytes().startswith(b"\x89PNG")


def test_a_wrong_system_is_seen(
    error: ModuleType, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A table whose untouched rows are never made up, as "lazy" Adams leave them."""

    class Lazy(error.Deferred):  # type: ignore[misc]
        def step(self, event: object, lr: float) -> None:
            super().step(event, lr)
            touched = self.deferral._events != -1
            self.deferral._events[touched] = len(self.deferral._actors.values)

    monkeypatch.setattr(error, "SYSTEMS", {"lazy": Lazy})
    report = error.measure(data, 40, 0)
    assert min(values[-1] for values in report["errors"]["lazy"].values()) > 0.05


def test_missing_text_is_one_sentence(
    error: ModuleType, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (data / "text" / "de.txt.xz").unlink()
    assert error.main(["--data", str(data), "--steps", "2"]) == 2
    message = capsys.readouterr().err
    assert message.startswith("optimiser_error.py: ") and "expected en and others" in message


def test_times_of_both_optimisers(
    benchmarks: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    module = importlib.import_module("optimiser_time")
    file = tmp_path / "times.json"
    arguments = ["--shape", "ner", "--model-size", "tiny", "--batch-size", "2", "--steps", "2"]
    assert module.main([*arguments, "--json", str(file)]) == 0
    (report,) = json.loads(file.read_text())
    assert all(len(taken) == 2 and min(taken) > 0 for taken in report["seconds"].values())
    printed = capsys.readouterr().out
    for name in (module.OURS, module.BARE, module.FUSED, module.KEPT, module.PACKED):
        assert f"  {name} " in printed
    assert "of a copy's" in printed and "at once" in printed
