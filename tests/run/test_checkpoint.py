"""Files that hold a run: replaced whole or not at all, and never by something worse."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from fastadv.run.checkpoint import find_checkpoint, load_checkpoint, previous_of, save_checkpoint
from fastadv.run.files import replace_folder


def test_a_checkpoint_is_replaced_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "c.safetensors"
    save_checkpoint(path, {"a": torch.ones(3)}, {"step": 1})

    class Unwritable(dict):
        def items(self):  # what a full disk would do half way
            raise OSError("no space left")

    with pytest.raises(OSError, match="no space"):
        save_checkpoint(path, Unwritable(), {"step": 2})
    tensors, state = load_checkpoint(path)
    assert state == {"step": 1} and torch.equal(tensors["a"], torch.ones(3))


def test_files_that_are_no_checkpoint_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "c.safetensors"
    with pytest.raises(ValueError, match="expected a checkpoint file"):
        load_checkpoint(path)
    save_file({"a": torch.ones(3)}, path)
    with pytest.raises(ValueError, match="found format None"):
        load_checkpoint(path)
    save_checkpoint(path, {"a": torch.ones(3)}, {})
    path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(ValueError, match="expected a checkpoint file"):
        load_checkpoint(path)


def test_a_folder_is_replaced_only_by_a_finished_one(tmp_path: Path) -> None:
    target = tmp_path / "best"
    replace_folder(target, lambda folder: (folder / "a").write_text("1"))

    def fail(folder: Path) -> None:
        (folder / "a").write_text("2")
        raise OSError("no space left")

    with pytest.raises(OSError, match="no space"):
        replace_folder(target, fail)
    assert (target / "a").read_text() == "1"
    replace_folder(target, lambda folder: (folder / "b").write_text("3"))
    assert [p.name for p in target.iterdir()] == ["b"]
    assert [p.name for p in tmp_path.iterdir()] == ["best"]


def saved(path: Path, *steps: int) -> Path:
    for step in steps:
        save_checkpoint(path, {"a": torch.full((50,), float(step))}, {"step": step})
    return path


def step_in(path: Path) -> int:
    tensors, state = load_checkpoint(path)
    assert tensors["a"].tolist() == [state["step"]] * 50
    return int(state["step"])


def test_the_one_before_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "c.safetensors"
    assert find_checkpoint(path) is None
    saved(path, 1)
    assert find_checkpoint(path) == (path, None)
    saved(path, 2, 3)
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "c.previous.safetensors",
        "c.safetensors",
    ]
    assert (step_in(path), step_in(previous_of(path))) == (3, 2)
    assert find_checkpoint(path) == (path, None)


@pytest.mark.parametrize("length", [0, 4, 100, -1])
def test_a_checkpoint_cut_short_gives_way_to_the_one_before(length: int, tmp_path: Path) -> None:
    path = saved(tmp_path / "c.safetensors", 1, 2)
    whole = path.read_bytes()
    # Written anew: the file before is another name for nothing that changes here.
    path.unlink()
    path.write_bytes(whole[:length])
    found, why = find_checkpoint(path) or (None, None)
    assert found == previous_of(path) and step_in(found) == 1
    assert why is not None and str(path) in why and "c.previous.safetensors" in why
    assert len(why.splitlines()) == 1
    previous_of(path).unlink()
    with pytest.raises(ValueError, match="expected a checkpoint file"):
        find_checkpoint(path)


def test_a_lost_newest_checkpoint_gives_way_too(tmp_path: Path) -> None:
    path = saved(tmp_path / "c.safetensors", 1, 2)
    path.unlink()
    found, why = find_checkpoint(path) or (None, None)
    assert found == previous_of(path) and why is not None


def test_without_hard_links_the_one_before_is_kept_as_well(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_links(*_: object) -> None:
        raise OSError(errno.EPERM, "no hard links here")

    monkeypatch.setattr(os, "link", no_links)
    path = saved(tmp_path / "c.safetensors", 1, 2, 3)
    assert (step_in(path), step_in(previous_of(path))) == (3, 2)


# The limit on a file's size fails a write half way, as a full disk does.
FULL = """
import resource, sys
from pathlib import Path
import torch
from fastadv.run.checkpoint import save_checkpoint
from fastadv.run.files import replace_folder
resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))
path = Path(sys.argv[1])
big = {"a": torch.ones(5000)}
for write in (lambda: save_checkpoint(path, big, {"step": 3}),
              lambda: replace_folder(path.with_name("best"),
                                     lambda f: (f / "w").write_bytes(bytes(5000)))):
    try:
        write()
    except OSError as error:
        print(error)
    else:
        print("written")
"""


def test_a_full_disk_loses_nothing(tmp_path: Path) -> None:
    path = saved(tmp_path / "c.safetensors", 1, 2)
    replace_folder(tmp_path / "best", lambda folder: (folder / "w").write_text("kept"))
    before = sorted(p.name for p in tmp_path.iterdir())
    done = subprocess.run(
        [sys.executable, "-c", FULL, str(path)], capture_output=True, text=True, check=True
    )
    checkpoint, model = done.stdout.splitlines()
    assert checkpoint.startswith(f"{path}: cannot write the checkpoint: ")
    assert model.startswith(f"{tmp_path / 'best'}: cannot write the model: ")
    assert (step_in(path), step_in(previous_of(path))) == (2, 1)
    assert (tmp_path / "best" / "w").read_text() == "kept"
    assert sorted(p.name for p in tmp_path.iterdir()) == before


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(OSError, match=r"file/c\.safetensors: cannot write the checkpoint"):
        save_checkpoint(tmp_path / "file" / "c.safetensors", {}, {})
    with pytest.raises(OSError, match=r"file/best: cannot write the model"):
        replace_folder(tmp_path / "file" / "best", lambda folder: None)
