"""Imports run one way: read from the sources, whatever a test happens to import."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

OPS = {"ops", "backends", "kernels", "_C"}
TOP = {
    "finetuner", "fit", "cli", "__main__", "demo", "run_state", "pretraining", "experiments",
}  # fmt: skip
LEARNING = {
    *TOP, "trainer", "encoder", "padded_encoder", "composed_pass", "architectures", "heads",
    "optim", "capturable_adam", "phase_optimizers", "step_graphs", "reference", "evaluate",
    "checkpoint", "export", "loading", "embedder", "predictions",
}  # fmt: skip

# Module, or folder of modules -> modules of fastadv that nothing in it may import.
FORBIDDEN = {
    "ops": LEARNING | {"packing", "data", "tokenization", "sampling", "metrics", "config"},
    "backends": LEARNING | {"ops", "packing", "data", "tokenization", "sampling", "metrics"},
    "packing": LEARNING | OPS,
    "data": LEARNING | OPS,
    "tokenization": LEARNING | OPS,
    "sampling": LEARNING | OPS,
    "metrics": LEARNING | OPS,
    "config": LEARNING | OPS,
    "selection": LEARNING | OPS,
    "weight_mean": LEARNING | OPS,
    "target_predictions": TOP - {"finetuner"},
    "step_choice": TOP - {"finetuner"},
    "trackers": LEARNING | OPS,
    "discriminator_health": LEARNING | OPS,
    "loading": LEARNING | OPS,
    "stopping": LEARNING | OPS,
    "streaming": LEARNING | OPS,
    "embedder": TOP | {"trainer", "heads", "optim"},
    "plots": TOP | {"trainer", "encoder", "heads", "optim"},
    "architectures": LEARNING | OPS,
    "padded_encoder": LEARNING | OPS,
    "composed_pass": LEARNING - {"encoder"},
    "encoder": TOP | {"trainer", "evaluate"},
    "heads": TOP | {"trainer", "evaluate"},
    "optim": TOP | {"trainer", "evaluate", "encoder", "heads"},
    "capturable_adam": TOP | {"trainer", "evaluate", "encoder", "heads"},
    "phase_optimizers": TOP | {"trainer", "evaluate"},
    "buckets": LEARNING | OPS,
    "prefetch": LEARNING | OPS,
    "loss_scaling": LEARNING | OPS,
    "trainer": TOP,
    "step_graphs": TOP,
    "reference": TOP | OPS,
    "finetuner": {"cli", "__main__", "demo", "experiments"},
    "fit": {"cli", "__main__", "demo", "experiments"},
    "experiments": {"cli", "__main__", "demo", "pretraining"},
}


def imported(path: Path, package: str) -> set[str]:
    """Dotted names of the modules that a file imports, functions' own imports among them."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parents = package.split(".")
                base = ".".join([*parents[: len(parents) - node.level + 1], *filter(None, [base])])
            names |= {base, *(f"{base}.{alias.name}" for alias in node.names)}
    return names


def files(module: str) -> list[Path]:
    folder = ROOT / "fastadv" / module
    return sorted(folder.rglob("*.py")) if folder.is_dir() else [folder.with_suffix(".py")]


def parts_of_fastadv(path: Path) -> set[str]:
    package = ".".join(path.relative_to(ROOT).parent.parts)
    names = [name.split(".") for name in imported(path, package)]
    return {name[1] for name in names if name[0] == "fastadv" and len(name) > 1}


@pytest.mark.parametrize("module", FORBIDDEN)
def test_layers(module: str) -> None:
    for path in files(module):
        if not path.exists():
            pytest.skip(f"there is no fastadv.{module}")
        wrong = parts_of_fastadv(path) & (FORBIDDEN[module] - {module})
        assert not wrong, f"{path.relative_to(ROOT)} imports {sorted(wrong)}"


def test_kernels_know_nothing_of_the_library() -> None:
    for path in sorted((ROOT / "kernels").glob("*.py")):
        outside = {name.split(".")[0] for name in imported(path, "kernels")}
        assert "fastadv" not in outside, path


@pytest.mark.parametrize("folder", ["fastadv", "kernels"])
def test_library_imports_no_tests_or_benchmarks(folder: str) -> None:
    for path in sorted((ROOT / folder).rglob("*.py")):
        package = ".".join(path.relative_to(ROOT).parent.parts)
        outside = {name.split(".")[0] for name in imported(path, package)}
        assert not outside & {"tests", "benchmarks", "conftest", "pytest"}, path


def test_the_check_bites(tmp_path: Path) -> None:
    path = tmp_path / "wrong.py"
    path.write_text("def f():\n    from ..ops import x\n    import fastadv.training.trainer\n")
    found = imported(path, "fastadv.data")
    assert {"fastadv.ops", "fastadv.ops.x", "fastadv.training.trainer"} <= found
