"""Weights from disk: what is read, what is refused, and that nothing in them ever runs."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import pytest
import tiny
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import (
    AutoModel,
    AutoModelForTokenClassification,
    BertForPreTraining,
    DistilBertForMaskedLM,
    RobertaForMaskedLM,
    XLMRobertaForMaskedLM,
)

from fastadv import AdversarialFinetuner, FinetuneConfig
from fastadv.model_io.loading import load_encoder, load_tokenizer


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tiny.tiny_folder(tmp_path / "model")


def as_pickle(folder: Path) -> Path:
    """The folder with its weights moved to pytorch_model.bin."""
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    torch.save(weights, folder / "pytorch_model.bin")
    return folder


def test_both_formats_give_the_same_weights(folder: Path) -> None:
    expected = tiny.tiny_bert().state_dict()
    from_safetensors = load_encoder(folder).state_dict()
    from_pickle = load_encoder(as_pickle(folder)).state_dict()
    for weights in (from_safetensors, from_pickle):
        assert weights.keys() == expected.keys()
        assert all(torch.equal(weights[n], expected[n]) for n in expected)


PRETRAINED = {
    "bert": BertForPreTraining,
    "roberta": RobertaForMaskedLM,
    "xlm-roberta": XLMRobertaForMaskedLM,
    "distilbert": DistilBertForMaskedLM,
}
FORMS = ("bare", "with heads", "gamma and beta", "pickle", "shards", "shards of pickles")


def written(kind: str, form: str, folder: Path) -> dict[str, Tensor]:
    """A folder as people have them; the encoder's weights under their present names."""
    encoder = tiny.tiny_model(kind)
    expected = {n: t.clone() for n, t in encoder.state_dict().items()}
    whole = PRETRAINED[kind](encoder.config)
    # What was pretrained as a language model alone has no pooler, and gets a random one.
    kept = {n: t for n, t in expected.items() if n in whole.base_model.state_dict()}
    whole.base_model.load_state_dict(kept)
    saved = encoder if form == "bare" else whole
    saved.save_pretrained(folder, max_shard_size="30KB" if "shards" in form else "1GB")
    tiny.tiny_tokenizer().save_pretrained(folder)
    if form == "gamma and beta":
        old = {".weight": ".gamma", ".bias": ".beta"}
        names = {f"LayerNorm{new}": f"LayerNorm{name}" for new, name in old.items()}
        weights = load_file(folder / "model.safetensors")
        for new, name in names.items():
            weights = {n.replace(new, name): t for n, t in weights.items()}
        assert any(n.endswith("LayerNorm.gamma") for n in weights)
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    if form == "pickle":
        as_pickle(folder)
    if form == "shards of pickles":
        shards_as_pickles(folder)
    return kept if form != "bare" else expected


def shards_as_pickles(folder: Path) -> None:
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    for path in sorted(folder.glob("model-*.safetensors")):
        torch.save(load_file(path), folder / f"pytorch_{path.stem}.bin")
        path.unlink()
    for name, file in index["weight_map"].items():
        index["weight_map"][name] = f"pytorch_{Path(file).stem}.bin"
    (folder / "model.safetensors.index.json").unlink()
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index))


@pytest.mark.parametrize(
    ("form", "task"), [*((form, "classification") for form in FORMS), ("with heads", "ner")]
)
@pytest.mark.parametrize("kind", tiny.KINDS)
def test_weights_survive_loading_and_saving(
    kind: str, form: str, task: str, tmp_path: Path
) -> None:
    """Bit for bit, with the names and shapes that transformers itself would write."""
    expected = written(kind, form, tmp_path / "there")
    if "shards" in form:
        assert len(list((tmp_path / "there").glob("*model-*"))) > 1
    labels = tiny.LABELS if task == "classification" else tiny.TAGS
    config = FinetuneConfig(max_length=32, encoder="packed")
    tuner = AdversarialFinetuner(tmp_path / "there", task, labels, config, device="cpu")
    tuner.save_pretrained(tmp_path / "here")
    found = load_file(tmp_path / "here" / "model.safetensors")
    model = AutoModel.from_pretrained(tmp_path / "there")
    prefix = ""
    if task == "ner":
        model.config.num_labels = len(labels)
        model = AutoModelForTokenClassification.from_config(model.config)
        prefix = f"{model.base_model_prefix}."
    shapes = {n: t.shape for n, t in model.state_dict().items()}
    assert {n: t.shape for n, t in found.items()} == shapes
    assert {t.dtype for t in found.values()} == {torch.float32}
    for name, weight in expected.items():
        if task == "classification" or not name.startswith("pooler."):
            assert torch.equal(found[prefix + name], weight), name


class Bomb:
    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> object:
        return (Path.touch, (self.target,))


def test_a_pickle_that_would_run_code_is_refused(folder: Path, tmp_path: Path) -> None:
    target = tmp_path / "it ran"
    as_pickle(folder)
    torch.save({"a": torch.ones(1), "b": Bomb(target)}, folder / "pytorch_model.bin")
    with pytest.raises(ValueError, match="cannot load an encoder") as refused:
        load_encoder(folder)
    assert len(str(refused.value).splitlines()) == 1
    assert not target.exists()
    # The bomb works: unpickled without care it goes off.
    pickle.loads(pickle.dumps(Bomb(target)))
    assert target.exists()


def damage(folder: Path, how: str) -> None:
    weights = folder / "model.safetensors"
    if how == "none":
        weights.unlink()
    elif how == "cut short":
        weights.write_bytes(weights.read_bytes()[:-8])
    elif how == "not safetensors":
        weights.write_bytes(b"PK" * 100)
    elif how == "incomplete":
        tensors = load_file(weights)
        del tensors["encoder.layer.1.output.dense.weight"]
        save_file(tensors, weights, metadata={"format": "pt"})
    elif how == "no config":
        (folder / "config.json").unlink()
    elif how == "config of nothing":
        (folder / "config.json").write_text("{}")
    elif how == "config cut short":
        text = (folder / "config.json").read_text()
        (folder / "config.json").write_text(text[: len(text) // 2])
    elif how == "unknown model":
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(config | {"model_type": "nonesuch"}))
    else:
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(config | {"hidden_size": 48}))


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("none", "found no weights, expected model.safetensors or pytorch_model.bin"),
        ("cut short", "cannot load an encoder"),
        ("not safetensors", "cannot load an encoder"),
        ("incomplete", r"found no weights for encoder.layer.1.output.dense.weight \(1 missing\)"),
        ("no config", r"found no config\.json"),
        ("config of nothing", "cannot load an encoder"),
        ("config cut short", "cannot load an encoder"),
        ("unknown model", "cannot load an encoder"),
        ("other sizes", "cannot load an encoder"),
    ],
)
def test_damaged_models_are_refused_in_one_line(how: str, message: str, folder: Path) -> None:
    damage(folder, how)
    with pytest.raises(ValueError, match=message) as refused:
        load_encoder(folder)
    assert str(refused.value).startswith(str(folder))
    assert len(str(refused.value).splitlines()) == 1


def test_a_missing_pooler_is_nothing_to_complain_of(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    kept = {n: t for n, t in tensors.items() if not n.startswith("pooler.")}
    assert len(kept) == len(tensors) - 2
    save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})
    assert load_encoder(folder).config.hidden_size == 32


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("./nowhere", "nowhere: found no such folder"),
        ("runs/of/nobody", "runs/of/nobody: found no such folder"),
        ("file", "file: found a file, expected the folder"),
    ],
)
def test_names_that_are_no_folder(
    name: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("file").write_text("x")
    for load in (load_encoder, load_tokenizer):
        with pytest.raises(ValueError, match=message):
            load(name)


@pytest.mark.usefixtures("no_network")
def test_a_hub_id_without_a_network_is_one_line() -> None:
    with pytest.raises(ValueError, match="nobody/nothing: cannot load an encoder") as refused:
        load_encoder("nobody/nothing")
    assert len(str(refused.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("how", "message"),
    [("none", "found a tokenizer without a vocabulary"), ("cut short", "cannot load a tokenizer")],
)
def test_a_folder_without_a_tokenizer_is_refused(how: str, message: str, folder: Path) -> None:
    for path in folder.glob("tokenizer*"):
        if how == "none":
            path.unlink()
        else:
            path.write_bytes(path.read_bytes()[:20])
    with pytest.raises(ValueError, match=message) as refused:
        load_tokenizer(folder)
    assert len(str(refused.value).splitlines()) == 1
