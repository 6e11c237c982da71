"""A small real BERT with a real fast tokenizer, made from scratch, and small data for it."""

from __future__ import annotations

from pathlib import Path

import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

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


def tiny_folder(path: Path, **changes: object) -> Path:
    """The model and tokenizer as a Hugging Face folder."""
    tiny_bert(**changes).save_pretrained(path)
    tiny_tokenizer().save_pretrained(path)
    return path
