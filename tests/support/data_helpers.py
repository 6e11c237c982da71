"""Tiny tokenizers built on the spot, and the way to real data where there is any."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers
from transformers import BertTokenizerFast, PreTrainedTokenizerFast

from fastadv.data import Sentence

ROOT = Path(__file__).resolve().parents[2]
LETTERS = "abcdefghijklmnopqrstuvwxyz"
TAGS = {"O": 0, "B-X": 1, "I-X": 2}
# Words of which BERT's kind of tokenizer makes no piece.
NO_PIECE = ["\u200b", "\x07", "\u3000", "\ufeff", ""]


def shared_data(*parts: str) -> Path:
    """A path below the folder of real data; the test that asks is skipped where it is missing."""
    folder = Path(os.environ.get("FASTADV_DATA", ROOT.parent / "shared" / "data"))
    path = folder.joinpath(*parts)
    if not path.exists():
        pytest.skip(f"no {path}: point FASTADV_DATA at the folder of real data")
    return path


def wordpiece() -> PreTrainedTokenizerFast:
    """BERT's kind: [CLS] .. [SEP], lower case, words of the letters a to z, a piece a letter.

    But "ab" is one piece, so "abc" is ab ##c and "ba" is b ##a.
    """
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "ab", *LETTERS]
    pieces += [f"##{letter}" for letter in LETTERS]
    return BertTokenizerFast({piece: number for number, piece in enumerate(pieces)})


def unigram() -> PreTrainedTokenizerFast:
    """XLM-R's kind, trained on three sentences: <s> .. </s>, and pieces that begin with ▁."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace()]
    )
    trainer = trainers.UnigramTrainer(
        vocab_size=60,
        special_tokens=["<s>", "<pad>", "</s>", "<unk>"],
        unk_token="<unk>",
        show_progress=False,
    )
    sentences = ["the cat sat on the mat", "a rat, a hat and the bat", "that cat ate the rat"]
    tokenizer.train_from_iterator(sentences * 20, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>",
        pair="<s> $A </s> </s> $B </s>",
        special_tokens=[("<s>", 0), ("</s>", 2)],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="</s>",
        cls_token="<s>",
        sep_token="</s>",
        pad_token="<pad>",
        unk_token="<unk>",
    )


def pieces(tokenizer: PreTrainedTokenizerFast, tokens: np.ndarray) -> str:
    return " ".join(tokenizer.convert_ids_to_tokens(tokens.tolist()))


def sentences_of(*texts: str) -> list[Sentence]:
    return [Sentence(tuple(text.split(" "))) for text in texts]


def mbert() -> PreTrainedTokenizerFast:
    vocabulary = shared_data("mbert_vocab", "vocab.txt")
    return BertTokenizerFast(str(vocabulary), do_lower_case=False)
