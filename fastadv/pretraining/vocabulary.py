"""A cased WordPiece vocabulary trained on text of several languages."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast

SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
CONTINUING = "##"


def train_vocabulary(
    texts: Mapping[str, Iterable[str]],
    size: int,
    exponent: float = 0.7,
    alphabet: int = 6000,
    bytes_read: int = 60_000_000,
) -> PreTrainedTokenizerFast:
    """A tokenizer of at most `size` pieces; the same text always gives the same tokenizer.

    Cased, accents kept, Chinese characters one by one, like multilingual BERT's. [PAD], [UNK],
    [CLS], [SEP] and [MASK] are 0 to 4.

    Args:
        texts: Paragraphs by language.
        size: Pieces, special ones included; little text gives fewer.
        exponent: Languages are read in proportion to their bytes to this power, each at most once.
        alphabet: Characters that are pieces by themselves, the most frequent ones; others become
            [UNK].
        bytes_read: How much text is read, in bytes of UTF-8.

    Raises:
        ValueError: There is no text, or its characters alone are more than `size` pieces.
    """
    lines = _sample(texts, exponent, bytes_read)
    if not any(map(str.strip, lines)):
        raise ValueError("found no text, expected some to train a vocabulary on")
    tokenizer = _pipeline(models.WordPiece(unk_token=SPECIAL[1]))
    characters = _characters(tokenizer, lines, alphabet)
    if len(SPECIAL) + len(characters) > size:
        raise ValueError(
            f"vocabulary_size is {size}, expected at least {len(SPECIAL) + len(characters)}, the "
            "number of special tokens and of single characters in the text"
        )
    # The trainer numbers characters in an order that changes from run to run, and breaks ties by
    # number; as special tokens they have the numbers that they are given.
    trainer = trainers.WordPieceTrainer(
        vocab_size=size,
        special_tokens=[*SPECIAL, *characters],
        limit_alphabet=0,
        show_progress=False,
    )
    tokenizer.train_from_iterator(lines, trainer)
    # A new tokenizer, in which only the real special tokens are special.
    vocabulary = tokenizer.get_vocab(with_added_tokens=True)
    return _fast(_pipeline(models.WordPiece(vocabulary, unk_token=SPECIAL[1])))


def _pipeline(model: models.WordPiece) -> Tokenizer:
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = normalizers.BertNormalizer(
        clean_text=True, handle_chinese_chars=True, strip_accents=False, lowercase=False
    )
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece(prefix=CONTINUING)
    return tokenizer


def _fast(tokenizer: Tokenizer) -> PreTrainedTokenizerFast:
    numbers = {name: tokenizer.token_to_id(name) for name in SPECIAL}
    tokenizer.post_processor = TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[(name, numbers[name]) for name in ("[CLS]", "[SEP]")],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
        model_max_length=512,
        clean_up_tokenization_spaces=False,
    )


def _sample(texts: Mapping[str, Iterable[str]], exponent: float, bytes_read: int) -> list[str]:
    """Paragraphs of every language, evenly spread over its text."""
    kept = {language: list(paragraphs) for language, paragraphs in texts.items()}
    sizes = {name: sum(len(p.encode()) for p in paragraphs) for name, paragraphs in kept.items()}
    sizes = {name: size for name, size in sizes.items() if size}
    total = sum(sizes.values())
    shares = {name: (size / total) ** exponent for name, size in sizes.items()}
    lines: list[str] = []
    for name, size in sizes.items():
        wanted = bytes_read * shares[name] / sum(shares.values())
        lines += _thinned(kept[name], min(1.0, wanted / size))
    return lines


def _thinned(paragraphs: list[str], part: float) -> Iterator[str]:
    """Every n-th paragraph, for n = 1 / part."""
    for i, paragraph in enumerate(paragraphs):
        if int((i + 1) * part) > int(i * part):
            yield paragraph


def _characters(tokenizer: Tokenizer, lines: list[str], most: int) -> list[str]:
    """Single characters, and those that continue a word with their prefix, in a fixed order."""
    begins: Counter[str] = Counter()
    continues: Counter[str] = Counter()
    words: Counter[str] = Counter()
    for line in lines:
        normalized = tokenizer.normalizer.normalize_str(line)
        words.update(w for w, _ in tokenizer.pre_tokenizer.pre_tokenize_str(normalized))
    for word, count in words.items():
        begins[word[0]] += count
        for character in word[1:]:
            continues[character] += count
    counts = begins + continues
    chosen = sorted(sorted(counts), key=lambda c: -counts[c])[:most]
    return [*sorted(chosen), *(CONTINUING + c for c in sorted(chosen) if c in continues)]
