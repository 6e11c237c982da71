"""Imports run one way: read from the sources, whatever a test happens to import."""

from __future__ import annotations

import ast
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

# Room (a folder or a file of fastadv/) -> rooms that its files may import, for types alone among
# them. What is not said is forbidden, and a file without a room fails. A room may import itself,
# the extension and fastadv.kernels.
ALLOWED = {
    "config": "",
    "backends": "",
    "reference": "",
    "samples": "",
    "data": "",
    "shares": "",
    "device": "config",
    "recommended": "config",
    "environment": "backends",
    "ops": "backends",
    "records": "config",
    "batches": "data",
    "weights": "backends batches",
    "optim": "config backends ops batches weights",
    "nn": "config backends ops batches weights",
    "training": "config backends device ops batches weights optim nn",
    "tasks": "config data ops batches shares nn",
    "model_io": "config nn tasks",
    "selection": "config nn tasks",
    "embedder": "config data device batches nn tasks model_io",
    "run": "config data device records batches shares nn training tasks selection model_io",
    "finetuner": "config recommended backends device data records batches nn training tasks"
    " selection model_io embedder run",
    "pretraining": "config device ops records batches weights nn training tasks model_io run",
    "experiments": "config recommended data samples environment records batches shares nn tasks"
    " selection run finetuner",
    "cli": "config recommended data environment records shares tasks model_io embedder run"
    " finetuner pretraining experiments",
    "__main__": "cli",
}


def imported(path: Path) -> set[str]:
    """Dotted names of what a file imports, functions' own imports among them."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found |= {f"{'.' * node.level}{node.module or ''}.{alias.name}" for alias in node.names}
    return found


def imported_of_ours(path: Path) -> set[str]:
    found = imported(path)
    relative = {name for name in found if name.startswith(".")}
    assert not relative, f"{path}: found the relative import {relative}, expected the whole name"
    return {name for name in found if name.startswith("fastadv.")}


def sources(root: Path = ROOT) -> dict[str, Path]:
    """Every module of fastadv but the package itself, by dotted name."""
    files = sorted((root / "fastadv").rglob("*.py"))
    names = {".".join(p.relative_to(root).with_suffix("").parts): p for p in files}
    return {n.removesuffix(".__init__"): p for n, p in names.items() if n != "fastadv.__init__"}


def room_of(module: str) -> str:
    return module.split(".")[1]


def forbidden(modules: dict[str, Path]) -> list[str]:
    """Imports that no row of the table allows, and files without a row."""
    wrong = []
    for module, path in modules.items():
        room = room_of(module)
        if room not in ALLOWED:
            wrong.append(f"{module} has no room, expected one of {', '.join(ALLOWED)}")
            continue
        allowed = {room, *ALLOWED[room].split(), "kernels", "_C"}
        found = imported_of_ours(path)
        wrong += [f"{module} -> {name}" for name in found if room_of(name) not in allowed]
    return sorted(wrong)


def circle(modules: dict[str, Path]) -> list[str] | None:
    """Modules that import one another in a circle; None if there is none."""
    graph = {}
    for module, path in modules.items():
        found = {n for name in imported_of_ours(path) for n in (name, name.rpartition(".")[0])}
        # What a folder's __init__ gathers is its own files'.
        graph[module] = {
            name
            for name in found & modules.keys()
            if name != module and modules[name].stem != "__init__"
        }
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return list(error.args[1])
    return None


def test_every_file_has_a_room_and_keeps_to_it() -> None:
    assert forbidden(sources()) == []


def test_every_room_is_there() -> None:
    assert {room_of(module) for module in sources()} == set(ALLOWED)


def test_the_table_goes_one_way() -> None:
    TopologicalSorter({room: row.split() for room, row in ALLOWED.items()}).prepare()


def test_the_page_shows_this_table() -> None:
    text = (ROOT / "docs" / "architecture.md").read_text("utf-8")
    _, _, table = text.partition("| room | may import |\n")
    found = {}
    for line in table.splitlines()[1:]:
        if not line.startswith("|"):
            break
        rooms, allowed = (cell.strip() for cell in line.strip("|").split("|"))
        for room in rooms.split(", "):
            found[room] = set() if allowed == "nothing" else set(allowed.split(", "))
    wanted = {room: set(row.split()) for room, row in ALLOWED.items() if room != "__main__"}
    assert found == wanted


def test_no_file_imports_itself_by_a_detour() -> None:
    assert circle(sources()) is None


def test_few_files_lie_flat() -> None:
    flat = [p for p in (ROOT / "fastadv").glob("*.py") if p.stem not in ("__init__", "__main__")]
    assert len(flat) <= 10, flat


def test_importing_the_rooms_imports_nothing() -> None:
    """A folder's __init__ is a docstring, but where it gathers the names that users import."""
    gathering = {"cli", "data", "ops", "samples", "selection"}
    for module, path in sources().items():
        if path.stem == "__init__" and room_of(module) not in gathering:
            assert len(ast.parse(path.read_text()).body) == 1, path


def test_kernels_know_nothing_of_the_library() -> None:
    for path in sorted((ROOT / "kernels").glob("*.py")):
        assert "fastadv" not in {name.split(".")[0] for name in imported(path)}, path


@pytest.mark.parametrize("folder", ["fastadv", "kernels"])
def test_library_imports_no_tests_or_benchmarks(folder: str) -> None:
    for path in sorted((ROOT / folder).rglob("*.py")):
        outside = {name.split(".")[0] for name in imported(path)}
        assert not outside & {"tests", "benchmarks", "conftest", "pytest"}, path


def write(root: Path, **files: str) -> dict[str, Path]:
    """The modules of a package made of these files, named by room__file."""
    for name, text in files.items():
        path = root / "fastadv" / (name.replace("__", "/") + ".py")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return sources(root)


def test_the_check_bites(tmp_path: Path) -> None:
    up = "def f():\n    from fastadv.training.trainer import Trainer\n"
    found = forbidden(write(tmp_path / "up", data__files=up, training__trainer=""))
    assert found == ["fastadv.data.files -> fastadv.training.trainer.Trainer"]
    found = forbidden(write(tmp_path / "new", attic__box=""))
    assert found[0].startswith("fastadv.attic.box has no room")
    types = "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from fastadv.nn.a import A\n"
    around = write(tmp_path / "around", nn__a="import fastadv.nn.b\n", nn__b=types)
    assert set(circle(around) or ()) == {"fastadv.nn.a", "fastadv.nn.b"}
    with pytest.raises(AssertionError, match="found the relative import"):
        forbidden(write(tmp_path / "relative", nn__a="from .b import B\n"))
