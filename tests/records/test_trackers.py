"""Trackers read back through their own formats, with a stop and a resume in between."""

from __future__ import annotations

import json
import os
import struct
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fastadv.records.trackers import TRACKERS, Tracker, open_tracker, scalars

CONFIG = {"steps": 50, "lr_task": 2e-6, "backend": None}


def records(steps: range) -> list[dict[str, Any]]:
    """As fit writes them: a training record, and an evaluation after it; different at each step."""
    found: list[dict[str, Any]] = []
    for step in steps:
        found.append({"kind": "train", "step": step, "loss_task": 1 / step, "loss_generator": 1.5})
        scores = {"accuracy": step / 64, "macro_f1": step / 128}
        test = {"de": scores, "zh": {"accuracy": step / 256, "macro_f1": 0.0}}
        found.append({"kind": "eval", "step": step, "dev": scores, "test": test})
        found.append({"kind": "warning", "step": step, "message": "words"})
    return found


# What a run without a stop would have logged, as float32 keeps it: powers of two divide.
EXPECTED = {
    "train/loss_generator": [(step, 1.5) for step in (10, 20, 30, 40, 50)],
    "dev/accuracy": [(step, step / 64) for step in (10, 20, 30, 40, 50)],
    "dev/macro_f1": [(step, step / 128) for step in (10, 20, 30, 40, 50)],
    "test/de/accuracy": [(step, step / 64) for step in (10, 20, 30, 40, 50)],
    "test/zh/accuracy": [(step, step / 256) for step in (10, 20, 30, 40, 50)],
}


def stop_and_resume(name: str, folder: Path) -> None:
    """A run that went on to step 40 and died, resumed from its checkpoint of step 20."""
    for steps, resume_step in ((range(10, 41, 10), 0), (range(30, 51, 10), 20)):
        tracker: Tracker = open_tracker(name, folder, "mldoc", CONFIG, resume_step)
        for record in records(steps):
            tracker.log(record)
        tracker.close()


def check(series: dict[str, list[tuple[int, float]]]) -> None:
    for name, points in EXPECTED.items():
        assert series[name] == points, name
    assert [step for step, _ in series["train/loss_task"]] == [10, 20, 30, 40, 50]
    assert not any("message" in name or "kind" in name for name in series)


def test_names_of_the_series() -> None:
    train, evaluation, _ = records(range(10, 20, 10))
    assert scalars(train) == {"train/loss_task": 0.1, "train/loss_generator": 1.5}
    assert set(scalars(evaluation)) == {
        f"{place}/{metric}"
        for place in ("dev", "test/de", "test/zh")
        for metric in ("accuracy", "macro_f1")
    }
    assert scalars({"kind": "eval", "step": 0, "test": {}}) == {}


def test_tensorboard(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    stop_and_resume("tensorboard", tmp_path)
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    series = {n: [(e.step, e.value) for e in events.Scalars(n)] for n in events.Tags()["scalars"]}
    check(series)
    (config,) = events.Tensors("config/text_summary")
    assert b'"lr_task": 2e-06' in config.tensor_proto.string_val[0]


def test_tensorboard_forgets_a_run_that_never_reached_a_checkpoint(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    for _ in range(2):
        tracker = open_tracker("tensorboard", tmp_path, "mldoc", CONFIG, 0)
        tracker.log({"kind": "eval", "step": 0, "test": {"de": {"f1": 0.5}}})
        tracker.close()
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [e.step for e in events.Scalars("test/de/f1")] == [0]


def test_tensorboard_is_on_the_disk_at_once(tmp_path: Path) -> None:
    """A process that is killed after its checkpoint never writes those points again."""
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    tracker = open_tracker("tensorboard", tmp_path, "mldoc", CONFIG, 0)
    tracker.log({"kind": "train", "step": 10, "loss_task": 0.5})
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [(e.step, e.value) for e in events.Scalars("train/loss_task")] == [(10, 0.5)]
    tracker.close()


@pytest.fixture
def wandb_offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """Nothing leaves the machine; wandb reads its environment anew in every test."""
    wandb = pytest.importorskip("wandb")
    wandb.teardown()
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.setenv("WANDB_ERROR_REPORTING", "false")
    monkeypatch.setenv("WANDB_CONFIG_DIR", str(tmp_path / "settings"))
    monkeypatch.delenv("WANDB_PROJECT", raising=False)
    yield
    wandb.teardown()


def wandb_records(path: Path) -> Iterator[Any]:
    """The protocol buffers of an offline run: a LevelDB log behind a header of 7 bytes."""
    from wandb.proto.wandb_internal_pb2 import Record

    data, at, whole = path.read_bytes(), 7, b""
    while at + 7 <= len(data):
        left = 32768 - at % 32768
        if left < 7:
            at += left
            continue
        length, kind = struct.unpack("<4xHB", data[at : at + 7])
        whole += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):
            yield Record.FromString(whole)
            whole = b""


@pytest.mark.usefixtures("wandb_offline")
def test_wandb(tmp_path: Path) -> None:
    stop_and_resume("wandb", tmp_path)
    # wandb writes from a process of its own, which may still be at it when a run is finished.
    sys.modules["wandb"].teardown()
    parts = sorted(tmp_path.glob("wandb/offline-run-*/*.wandb"), key=lambda p: p.stat().st_mtime)
    assert len(parts) == 2
    series: dict[str, list[tuple[int, float]]] = {}
    runs, rows = set(), []
    for part in parts:
        for record in wandb_records(part):
            if record.WhichOneof("record_type") == "run":
                runs.add((record.run.run_id, record.run.display_name, record.run.project))
            if record.WhichOneof("record_type") == "history":
                items = record.history.item
                row = {i.key or ".".join(i.nested_key): json.loads(i.value_json) for i in items}
                rows.append(row["_step"])
                for name, value in row.items():
                    series.setdefault(name, []).append((row["step"], value))
    check(series)
    assert rows == list(range(10)), "wandb drops rows that do not go on where the last part ended"
    identity = json.loads((tmp_path / "tracker-wandb.json").read_text())["id"]
    assert runs == {(identity, "mldoc", "fastadv")}


@pytest.mark.usefixtures("wandb_offline")
def test_wandb_honours_its_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "disabled")
    tracker = open_tracker("wandb", tmp_path, "mldoc", CONFIG, 0)
    tracker.log({"kind": "train", "step": 10, "loss_task": 0.5})
    tracker.close()
    assert not list(tmp_path.glob("wandb/*run*/*.wandb"))


@pytest.mark.usefixtures("wandb_offline")
def test_wandb_without_a_login(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "online")
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    with pytest.raises(RuntimeError, match=r"^wandb: .*expected .*WANDB_MODE=offline$"):
        open_tracker("wandb", tmp_path, "mldoc", CONFIG, 0)


@pytest.fixture(scope="module")
def trackio_storage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """trackio's own reader, over a database of this module: trackio reads TRACKIO_DIR once."""
    before = os.environ.get("TRACKIO_DIR")
    os.environ["TRACKIO_DIR"] = str(tmp_path_factory.mktemp("trackio"))
    trackio = pytest.importorskip("trackio")
    assert str(trackio.TRACKIO_DIR) == os.environ["TRACKIO_DIR"], "trackio was imported before"
    yield trackio.SQLiteStorage
    if before is None:
        del os.environ["TRACKIO_DIR"]
    else:
        os.environ["TRACKIO_DIR"] = before


def test_trackio(trackio_storage: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    # A run of the same name in another folder must stay another run.
    other = open_tracker("trackio", tmp_path / "other", "mldoc", CONFIG, 0)
    other.log({"kind": "train", "step": 10, "loss_task": 0.5})
    other.close()
    stop_and_resume("trackio", tmp_path / "run")
    assert capsys.readouterr().out == ""
    with pytest.raises(RuntimeError, match="init"):
        sys.modules["trackio"].finish()  # as it does at exit, where it would print
    identity = json.loads((tmp_path / "run" / "tracker-trackio.json").read_text())["id"]
    name = f"mldoc-{identity}"
    assert name in trackio_storage.get_runs("fastadv")
    assert len(trackio_storage.get_runs("fastadv")) == 2
    series: dict[str, list[tuple[int, float]]] = {}
    for row in trackio_storage.get_logs("fastadv", name):
        for key, value in row.items():
            series.setdefault(key, []).append((row["step"], value))
    check(series)


def test_a_run_that_begins_again_is_another_run(trackio_storage: Any, tmp_path: Path) -> None:
    """Killed before its first checkpoint, a run may begin again with other settings."""
    identities = []
    for _ in range(2):
        open_tracker("trackio", tmp_path, "again", CONFIG, 0).close()
        identities.append(json.loads((tmp_path / "tracker-trackio.json").read_text())["id"])
    assert identities[0] != identities[1]


def test_a_damaged_file_is_refused(trackio_storage: Any, tmp_path: Path) -> None:
    (tmp_path / "tracker-trackio.json").write_text('{"id": "abc"')
    with pytest.raises(ValueError, match=r"tracker-trackio\.json: found no id"):
        open_tracker("trackio", tmp_path, "run", CONFIG, 20)


def test_unknown_tracker(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="found 'mlflow', expected one of tensorboard, wandb, tr"):
        open_tracker("mlflow", tmp_path, "run", CONFIG, 0)


@pytest.mark.parametrize("name", TRACKERS)
def test_missing_package(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, name, None)  # type: ignore[arg-type]
    monkeypatch.delitem(sys.modules, "torch.utils.tensorboard", raising=False)
    with pytest.raises(ImportError, match=f"pip install {name}$"):
        open_tracker(name, tmp_path, "run", CONFIG, 0)
