"""A small real BERT with a real fast tokenizer, made from scratch, and small data for it."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import (
    BertConfig,
    BertModel,
    DistilBertConfig,
    DistilBertModel,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    RobertaConfig,
    RobertaModel,
    XLMRobertaConfig,
    XLMRobertaModel,
)

from fastadv.nn.encoder import Encoder

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
LABELS = ("weather", "music")
TAGS = ("O", "B-PER", "I-PER", "B-LOC", "I-LOC")

ENGLISH = [
    ("rain falls on the quiet harbour before noon", "weather"),
    ("the violin answers a slow cello in the dark hall", "music"),
    ("a cold wind brings snow to the northern valleys", "weather"),
    ("her second song opens with drums and a low choir", "music"),
    ("clouds part over the coast and the sun returns", "weather"),
    ("the band plays one more waltz for the dancers", "music"),
    ("fog", "weather"),
    ("an organ", "music"),
]
GERMAN = [
    "der regen zieht heute langsam nach osten ab",
    "die geige beginnt leise und das orchester folgt",
    "am abend wird es kalt und der wind dreht",
    "das lied endet mit einem langen ton der orgel",
    "nebel liegt über dem hafen",
]
FRENCH = ["la pluie tombe sur le port", "le violon répond au piano", "un vent froid se lève"]
SENTENCES = [
    (("Anna", "Berg", "left", "Oslo", "."), ("B-PER", "I-PER", "O", "B-LOC", "O")),
    (("Nobody", "answered", "."), ("O", "O", "O")),
    (("In", "New", "York", "Carl", "waited", "."), ("O", "B-LOC", "I-LOC", "B-PER", "O", "O")),
    (("Mira", "Sol", "met", "Carl", "."), ("B-PER", "I-PER", "O", "B-PER", "O")),
]


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """A cased WordPiece tokenizer as multilingual BERT's, for the texts above.

    The vocabulary is every character and every short word; a trained one would differ from run
    to run, since the trainer breaks ties as its hash table falls.
    """
    texts = [text for text, _ in ENGLISH] + GERMAN + FRENCH
    words = {word for text in texts for word in text.split()}
    words |= {word for sentence, _ in SENTENCES for word in sentence}
    characters = sorted({character for word in words for character in word})
    pieces = [*SPECIAL, *characters, *(f"##{c}" for c in characters)]
    pieces += sorted(word for word in words if 1 < len(word) < 6)
    vocabulary = {piece: k for k, piece in enumerate(pieces)}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=False)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        special_tokens=[(s, tokenizer.token_to_id(s)) for s in ("[CLS]", "[SEP]")],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token="[UNK]",
        pad_token="[PAD]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
        model_max_length=64,
    )


def tiny_bert(seed: int = 0, **changes: object) -> BertModel:
    """A BERT of 2 layers of 32 units, its weights drawn from `seed`."""
    settings = {
        "vocab_size": len(tiny_tokenizer()),
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 64,
        "max_position_embeddings": 64,
        **changes,
    }
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = BertModel(BertConfig(**settings))
        with torch.no_grad():
            # transformers starts biases at 0 and gains at 1, where mistakes hide.
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter), alpha=0.02)
    return model.eval()


KINDS = ("bert", "roberta", "xlm-roberta", "distilbert")
"""The model types that `PackedBert` runs."""


def tiny_config(kind: str, **changes: object) -> Any:
    """Of 2 layers of 32 units, dropout off; weights large enough for attention to matter."""
    common = {
        "vocab_size": len(tiny_tokenizer()),
        "initializer_range": 0.1,
        # The test tokenizer's own, also for the families that count positions from it.
        "pad_token_id": 0,
        "max_position_embeddings": 514,
    }
    if kind == "distilbert":
        sizes = {"dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 64}
        rates = {"dropout": 0.0, "attention_dropout": 0.0}
        return DistilBertConfig(**{**common, **sizes, **rates, **changes})
    sizes = {
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 64,
    }
    rates = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    classes = {"bert": BertConfig, "roberta": RobertaConfig, "xlm-roberta": XLMRobertaConfig}
    return classes[kind](**{**common, **sizes, **rates, **changes})


def tiny_model(kind: str, seed: int = 0, **changes: object) -> PreTrainedModel:
    """A model of one of `KINDS` with random weights, biases and gains."""
    classes = {
        "bert": BertModel,
        "roberta": RobertaModel,
        "xlm-roberta": XLMRobertaModel,
        "distilbert": DistilBertModel,
    }
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = classes[kind](tiny_config(kind, **changes))
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter), alpha=0.05)
    return model.eval()


def huggingface(encoder: Encoder) -> PreTrainedModel:
    """A copy of the transformers model inside an encoder, without the pooler that nobody runs."""
    with encoder.complete() as model:
        found = copy.deepcopy(model)
    found.pooler = None
    return found


def tiny_folder(path: Path, **changes: object) -> Path:
    """The model and tokenizer as a Hugging Face folder."""
    tiny_bert(**changes).save_pretrained(path)
    tiny_tokenizer().save_pretrained(path)
    return path
