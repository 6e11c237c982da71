"""An operation has one name, in every folder; what is missing is stated here."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from fastadv.backends import OPERATIONS

ROOT = Path(__file__).parents[1]

SLICE = (
    "fastadv/ops/{}.py",
    "csrc/{}.cpp",
    "csrc/cuda/{}.cu",
    "kernels/{}.py",
    "tests/ops/test_{}.py",
    "benchmarks/ops/bench_{}.py",
)

# Operation -> files of its slice that it does without.
WITHOUT: dict[str, set[str]] = {
    # On GPUs these are Triton's: nothing in them needs what only CUDA C++ has.
    **{
        op: {f"csrc/cuda/{op}.cu"}
        for op in (
            "embedding_layer_norm",
            "varlen_attention",
            "dropout_add_layer_norm",
            "bias_gelu",
            "cross_entropy",
            "adam",
            "embedding_adam",
        )
    },
    # Products on a GPU are PyTorch's own, from the vendor's library.
    "linear": {"csrc/cuda/linear.cu", "kernels/linear.py"},
}

# Files in the folders of operations that are not operations.
SHARED = {
    "fastadv/ops": {"__init__", "dtypes", "memory", "philox"},
    "csrc": {"module"},
    "csrc/cuda": set(),
    "kernels": {"__init__", "launch", "philox", "short_attention"},
}


def test_slices_are_complete() -> None:
    for op in OPERATIONS:
        for pattern in SLICE:
            path = pattern.format(op)
            wanted = path not in WITHOUT.get(op, set())
            assert (ROOT / path).exists() == wanted, path


def test_nothing_but_slices() -> None:
    for folder, shared in SHARED.items():
        for path in (ROOT / folder).iterdir():
            if path.suffix in (".py", ".cpp", ".cu"):
                assert path.stem in {*OPERATIONS, *shared}, path


def test_the_same_functions_in_every_backend() -> None:
    for op in OPERATIONS:
        without = WITHOUT.get(op, set())
        texts = {
            path: (ROOT / path).read_text()
            for path in (f"csrc/{op}.cpp", f"csrc/cuda/{op}.cu", f"kernels/{op}.py")
            if path not in without
        }
        schema = texts[f"csrc/{op}.cpp"].split("m.def(")[1:]
        names = [part.split('"')[1].split("(")[0] for part in schema]
        assert op in names
        for name in names:
            for path, text in texts.items():
                wanted = f"def {name}(" if path.endswith(".py") else f'm.impl("{name}"'
                assert wanted in text, (path, name)


def test_reference_comes_first() -> None:
    for op in OPERATIONS:
        text = (ROOT / "fastadv" / "ops" / f"{op}.py").read_text()
        first = next(line for line in text.splitlines() if line.startswith(("def ", "class ")))
        assert first.startswith(f"def {op}_ref("), first


def run(code: str, folder: Path) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_folder_kernels_does_not_shadow_the_package_kernels() -> None:
    """transformers probes for a package `kernels`; from our root it finds our folder."""
    run("import transformers; from transformers import BertConfig, BertModel", ROOT)
    text = (ROOT / "kernels" / "__init__.py").read_text()
    assert [line.split(" = ")[0] for line in text.splitlines() if line] == ["__version__"]


def test_kernels_import_from_anywhere(tmp_path: Path) -> None:
    code = "import fastadv.kernels; print(fastadv.kernels.__file__)"
    for folder in (ROOT, tmp_path):
        assert Path(run(code, folder)).parent.name == "kernels"


def test_versions_agree() -> None:
    import fastadv.kernels

    import fastadv

    assert fastadv.kernels.__version__ == fastadv.__version__
