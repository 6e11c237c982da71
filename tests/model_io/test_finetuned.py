"""Saved models, read back by plain transformers and by the library."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
from safetensors import safe_open
from transformers import (
    AutoModel,
    AutoModelForTokenClassification,
    AutoTokenizer,
    ElectraConfig,
    ElectraModel,
    PreTrainedModel,
)

from fastadv import AdversarialFinetuner, FinetuneConfig

pytestmark = pytest.mark.usefixtures("one_thread")

TEXTS = ["rain falls on the quiet harbour", "fog", "der regen zieht heute langsam nach osten ab"]
# float32 through the same layers, batched and padded differently: a few roundings of numbers
# near 1. A wrong tensor shows at 1e-2.
TOLERANCE = 1e-5


FAMILIES = (*tiny.KINDS, "electra")


def encoder_of(family: str) -> PreTrainedModel:
    """Of the types that run packed, and one that transformers runs, padded."""
    if family in tiny.KINDS:
        return tiny.tiny_model(family)
    return ElectraModel(
        ElectraConfig(
            vocab_size=len(tiny.tiny_tokenizer()),
            embedding_size=32,
            hidden_size=32,
            num_hidden_layers=2,
            num_attention_heads=4,
            intermediate_size=64,
        )
    )


def trained(task: str, encoder: PreTrainedModel, choice: str = "auto") -> AdversarialFinetuner:
    labels = tiny.LABELS if task == "classification" else tiny.TAGS
    config = FinetuneConfig(
        steps=2,
        batch_size=3,
        max_length=32,
        precision="fp32",
        lr_task=1e-2,
        lr_generator=1e-3,
        encoder=choice,
    )
    tuner = AdversarialFinetuner(
        encoder, task, labels, config, tokenizer=tiny.tiny_tokenizer(), device="cpu"
    )
    data = tiny.ENGLISH if task == "classification" else tiny.SENTENCES
    tuner.fit(data, {"de": tiny.GERMAN}, quiet=True)
    return tuner


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("task", ["classification", "ner"])
def test_encoder_loads_with_automodel(task: str, family: str, tmp_path: Path) -> None:
    tuner = trained(task, encoder_of(family))
    tuner.save_pretrained(tmp_path)
    model = AutoModel.from_pretrained(tmp_path).eval()
    assert model.dtype == torch.float32
    inputs = AutoTokenizer.from_pretrained(tmp_path)(TEXTS, padding=True, return_tensors="pt")
    inputs.pop("token_type_ids", None)
    with torch.no_grad():
        hidden = model(**inputs).last_hidden_state
    mask = inputs["attention_mask"].unsqueeze(-1)
    pooled = (hidden * mask).sum(1) / mask.sum(1)
    np.testing.assert_allclose(tuner.embed(TEXTS), pooled.numpy(), atol=TOLERANCE)


@pytest.mark.parametrize("family", FAMILIES)
def test_ner_loads_with_token_classification(family: str, tmp_path: Path) -> None:
    tuner = trained("ner", encoder_of(family))
    tuner.save_pretrained(tmp_path)
    model = AutoModelForTokenClassification.from_pretrained(tmp_path).eval()
    assert model.config.id2label == dict(enumerate(tiny.TAGS))
    assert model.config.label2id == {tag: k for k, tag in enumerate(tiny.TAGS)}
    for words, _ in tiny.SENTENCES:
        inputs = AutoTokenizer.from_pretrained(tmp_path)(
            list(words), is_split_into_words=True, return_tensors="pt"
        )
        first = [inputs.word_ids().index(k) for k in range(len(words))]
        inputs.pop("token_type_ids", None)
        with torch.no_grad():
            probabilities = model(**inputs).logits[0].softmax(-1)[first]
        [prediction] = tuner.predict([words])
        best = probabilities.argmax(-1).tolist()
        assert list(prediction.tags) == [tiny.TAGS[k] for k in best]
        np.testing.assert_allclose(
            prediction.probabilities, probabilities.max(-1).values, atol=TOLERANCE
        )


@pytest.mark.parametrize("choice", ["packed", "padded"])
@pytest.mark.parametrize("task", ["classification", "ner"])
def test_from_pretrained_gives_the_same_finetuner(task: str, choice: str, tmp_path: Path) -> None:
    tuner = trained(task, tiny.tiny_bert(), choice)
    tuner.save_pretrained(tmp_path)
    again = AdversarialFinetuner.from_pretrained(tmp_path, device="cpu")
    assert (again.task, again.labels, again.config) == (tuner.task, tuner.labels, tuner.config)
    # Of named entities there is none.
    assert again.majority == tuner.majority == ("weather" if task == "classification" else None)
    ours, theirs = tuner.model.state_dict(), again.model.state_dict()
    assert ours.keys() == theirs.keys()
    assert [n for n in ours if not torch.equal(ours[n], theirs[n])] == []
    data = tiny.ENGLISH if task == "classification" else tiny.SENTENCES
    assert again.evaluate({"x": data}) == tuner.evaluate({"x": data})


@pytest.mark.parametrize("choice", ["packed", "padded"])
def test_unused_pooler_is_saved_as_it_was(choice: str, tmp_path: Path) -> None:
    encoder = tiny.tiny_bert()
    pooler = encoder.pooler.dense.weight.detach().clone()
    tuner = trained("classification", encoder, choice)
    assert not any("pooler" in name for name, _ in tuner.model.named_parameters())
    tuner.save_pretrained(tmp_path)
    with safe_open(tmp_path / "model.safetensors", framework="pt") as file:
        assert torch.equal(file.get_tensor("pooler.dense.weight"), pooler)


@pytest.mark.parametrize("choice", ["packed", "padded"])
@pytest.mark.parametrize("task", ["classification", "ner"])
def test_saving_leaves_the_model_as_it_is(task: str, choice: str, tmp_path: Path) -> None:
    """What is written is a view of the weights; they are neither moved nor changed by it."""
    tuner = trained(task, tiny.tiny_bert(), choice)
    before = {n: (p.data_ptr(), p.detach().clone()) for n, p in tuner.model.named_parameters()}
    tuner.save_pretrained(tmp_path)
    after = dict(tuner.model.named_parameters())
    assert before.keys() == after.keys()
    for name, (address, weight) in before.items():
        parameter = after[name]
        assert parameter.data_ptr() == address and torch.equal(parameter, weight), name
        assert parameter.requires_grad
    tuner.fit(
        tiny.ENGLISH if task == "classification" else tiny.SENTENCES,
        {"de": tiny.GERMAN},
        quiet=True,
    )


def test_folders_that_fastadv_did_not_write_are_refused(tmp_path: Path) -> None:
    tiny.tiny_folder(tmp_path)
    with pytest.raises(ValueError, match=r"found no fastadv\.json"):
        AdversarialFinetuner.from_pretrained(tmp_path)
    (tmp_path / "fastadv.json").write_text(json.dumps({"format": "fastadv-model-9"}))
    with pytest.raises(ValueError, match="expected 'fastadv-model-1'"):
        AdversarialFinetuner.from_pretrained(tmp_path)


def test_models_of_before_classes_were_counted_have_no_commonest(tmp_path: Path) -> None:
    trained("classification", tiny.tiny_bert()).save_pretrained(tmp_path)
    card = json.loads((tmp_path / "fastadv.json").read_text())
    del card["class_counts"]
    (tmp_path / "fastadv.json").write_text(json.dumps(card))
    assert AdversarialFinetuner.from_pretrained(tmp_path).majority is None
