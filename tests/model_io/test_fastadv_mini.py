"""The model that lies in the package."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from transformers import AutoModelForMaskedLM, AutoTokenizer

from fastadv.model_io.packaged import resolve_model

ROOT = Path(__file__).parents[2]
FOLDER = Path(resolve_model("fastadv-mini"))


def test_it_is_small_and_of_16_bits() -> None:
    weights = FOLDER / "model.safetensors"
    assert weights.stat().st_size < 20e6
    with safe_open(weights, framework="pt") as file:
        kinds = {str(file.get_slice(name).get_dtype()) for name in file.keys()}  # noqa: SIM118
    assert kinds == {"BF16"}


def test_the_repository_stays_under_40_megabytes() -> None:
    if not (ROOT / ".git").exists():
        pytest.skip("no repository, such as in an unpacked archive")
    names = subprocess.run(
        ["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True, text=True
    ).stdout
    files = [ROOT / name for name in names.split("\0") if name]
    tracked = sum(file.stat().st_size for file in files if file.exists())
    # What HEAD reaches, each object once: a folder git has fetched into may hold the same
    # object loose and packed, or objects of branches that are gone, which no clone brings.
    history = int(
        subprocess.run(
            ["git", "rev-list", "--disk-usage", "--objects", "HEAD"],
            cwd=ROOT,
            capture_output=True,
            check=True,
            text=True,
        ).stdout
    )
    assert tracked + history < 40e6


def test_the_card_says_what_it_is() -> None:
    card = (FOLDER / "README.md").read_text("utf-8")
    for word in ("Data", "Command", "Time", "Held-out loss", "Limits", "license: apache-2.0"):
        assert word in card


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("This package contains the development [MASK] and header files.", "libraries"),
        ("Dieses Paket enthält die [MASK] für die Bibliothek.", None),
        ("Cette option est [MASK] par défaut.", None),
    ],
)
def test_it_reads_context(text: str, word: str | None) -> None:
    """A masked piece is guessed better in its sentence than without one."""
    tokenizer = AutoTokenizer.from_pretrained(FOLDER)
    model = AutoModelForMaskedLM.from_pretrained(FOLDER, dtype=torch.float32).eval()

    def guess(sentence: str) -> torch.Tensor:
        batch = tokenizer(sentence, return_tensors="pt")
        place = batch["input_ids"][0].tolist().index(tokenizer.mask_token_id)
        with torch.no_grad():
            return model(**batch).logits[0, place].log_softmax(0)

    in_context, alone = guess(text), guess("[MASK]")
    best = int(in_context.argmax())
    assert best > 4, "a special token"
    assert in_context[best] > alone[best] + 1
    if word is not None:
        top = tokenizer.convert_ids_to_tokens(in_context.topk(20).indices.tolist())
        assert word in top, top


def test_no_unknown_pieces_in_its_languages() -> None:
    tokenizer = AutoTokenizer.from_pretrained(FOLDER)
    for text in (
        "The quick fox", "Größe übermäßig", "¿Qué año? Sí", "Élève où ça", "perché città",
        "これは日本語の文です", "Это русский текст", "这是中文文本",
    ):  # fmt: skip
        assert tokenizer.unk_token_id not in tokenizer(text)["input_ids"], text
