"""A vocabulary of several languages: the same for the same text, cased, of the size asked for."""

from __future__ import annotations

import json
import subprocess
import sys
from itertools import product
from typing import Any

import numpy as np
import pytest

from fastadv.pretraining.vocabulary import train_vocabulary

SYLLABLES = {
    "en": ("ba", "ko", "The", "sin", "re", "lo", "Wi", "x"),
    "de": ("über", "Kä", "straß", "en", "Öl", "ig", "ung", "fé"),
    "ru": ("ко", "шка", "Ми", "ра", "день", "йё", "По", "ст"),
    "el": ("λό", "γος", "Αθ", "ήνα", "και", "νε", "ρό", "Σπ"),
}
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
HANZI = "我在北京大学习中文今天气很好山水"
SIZE = 400


def texts() -> dict[str, list[str]]:
    """Made-up lines: 60 words a language, some far more frequent than others."""
    found = {}
    for language, syllables in SYLLABLES.items():
        rng = np.random.default_rng(len(found))
        words = ["".join(rng.choice(syllables, rng.integers(1, 5))) for _ in range(60)]
        ranks = (60 * rng.random((80, 12)) ** 2).astype(int)
        found[language] = [", ".join(words[rank] for rank in line) + "." for line in ranks]
    rng = np.random.default_rng(9)
    found["zh"] = ["".join(rng.choice(list(HANZI), 10)) + "。" for _ in range(40)]
    return found


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return train_vocabulary(texts(), SIZE)


@pytest.fixture(scope="module")
def pieces(tokenizer: Any) -> dict[str, int]:
    return tokenizer.get_vocab()


# The functions above print their vocabulary in a process of their own.
ELSEWHERE = """
import json
from test_vocabulary import SIZE, texts, train_vocabulary
print(json.dumps(train_vocabulary(texts(), SIZE).get_vocab()))
"""


def test_another_process_finds_the_same(pieces: dict[str, int]) -> None:
    path = f"import sys; sys.path.insert(0, {str(__file__)!r}.rpartition('/')[0])"
    command = [sys.executable, "-c", path + ELSEWHERE]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == pieces


def test_the_same_again(pieces: dict[str, int]) -> None:
    again = {language: iter(lines) for language, lines in texts().items()}
    assert train_vocabulary(again, SIZE).get_vocab() == pieces


def test_the_same_again_where_a_part_is_read(pieces: dict[str, int]) -> None:
    part, again = (train_vocabulary(texts(), SIZE, bytes_read=9000).get_vocab() for _ in range(2))
    assert part == again != pieces


@pytest.mark.parametrize("size", [250, 333, SIZE])
def test_size_is_exact(size: int) -> None:
    tokenizer = train_vocabulary(texts(), size)
    assert len(tokenizer) == tokenizer.vocab_size == size
    assert sorted(tokenizer.get_vocab().values()) == list(range(size))


def test_little_text_gives_fewer() -> None:
    # Single pieces a, ##b, b and ##a, and the words ab and ba.
    pieces = train_vocabulary({"en": ["ab ba", "ab"]}, 100).get_vocab()
    assert set(pieces) == {*SPECIAL, "a", "##b", "b", "##a", "ab", "ba"}


def test_special_pieces_come_first(tokenizer: Any, pieces: dict[str, int]) -> None:
    assert [pieces[token] for token in SPECIAL] == [0, 1, 2, 3, 4]
    named = (
        tokenizer.pad_token_id,
        tokenizer.unk_token_id,
        tokenizer.cls_token_id,
        tokenizer.sep_token_id,
        tokenizer.mask_token_id,
    )
    assert named == (0, 1, 2, 3, 4)
    assert sorted(tokenizer.all_special_ids) == [0, 1, 2, 3, 4]
    assert not [piece for piece in pieces if piece.startswith("##[")]


def test_single_letters_are_ordinary(tokenizer: Any, pieces: dict[str, int]) -> None:
    """They stand among the first pieces of the training, but are not taken out of words."""
    singles = [piece for piece in pieces if len(piece) == 1]
    assert {"x", "ü", "к", "Α", "我"} <= set(singles)
    assert not set(singles) & set(tokenizer.all_special_tokens)
    text = "x sinko ba"
    found = tokenizer(text, add_special_tokens=False).input_ids
    assert tokenizer.decode(found, skip_special_tokens=True) == text
    assert tokenizer.tokenize("x") == ["x"]
    # A piece inside a word says that it is inside.
    inside = tokenizer.tokenize("xxxx")
    assert not inside[0].startswith("##") and all(p.startswith("##") for p in inside[1:])
    assert "".join(p.removeprefix("##") for p in inside) == "xxxx"


def test_decode_round_trip(tokenizer: Any) -> None:
    for language in SYLLABLES:
        for line in texts()[language]:
            ids = tokenizer(line).input_ids
            assert tokenizer.decode(ids, skip_special_tokens=True) == line
            assert tokenizer.unk_token_id not in ids


def test_case_and_accents_are_kept(tokenizer: Any) -> None:
    """Every line has its words back: here those that differ in nothing else."""
    for one, other in (("the", "The"), ("al", "Al"), ("fé", "fe"), ("йё", "йе"), ("ήνα", "ηνα")):
        ids = [tokenizer(text, add_special_tokens=False).input_ids for text in (one, other)]
        assert ids[0] != ids[1]
    assert tokenizer.decode(tokenizer("fé Öl über").input_ids[1:-1]) == "fé Öl über"


def test_chinese_characters_stand_alone(tokenizer: Any, pieces: dict[str, int]) -> None:
    chinese = [piece for piece in pieces if set(piece) & set(HANZI)]
    assert sorted(chinese) == sorted(set(HANZI))
    assert tokenizer.tokenize("我在x北京") == ["我", "在", "x", "北", "京"]


def test_framing(tokenizer: Any) -> None:
    inner = tokenizer("ko", add_special_tokens=False).input_ids
    assert tokenizer("ko").input_ids == [2, *inner, 3]
    assert tokenizer("ko", "ko").input_ids == [2, *inner, 3, *inner, 3]
    expected = [0] * (len(inner) + 2) + [1] * (len(inner) + 1)
    assert tokenizer("ko", "ko", return_token_type_ids=True).token_type_ids == expected
    assert tokenizer.model_max_length == 512


def test_unknown_characters(tokenizer: Any) -> None:
    assert tokenizer("ko 𐍈 ko").input_ids.count(1) == 1


def test_rare_characters_are_left_out() -> None:
    """Of a, b, c and d, each less frequent than the one before, two are kept."""
    text = {"en": ["aaaa bbb", "cc d"]}
    tokenizer = train_vocabulary(text, 100, alphabet=2)
    assert {c for piece in tokenizer.get_vocab() for c in piece} - set("#[]") <= set(
        "ab" + "".join(SPECIAL)
    )
    assert tokenizer("aa c", add_special_tokens=False).input_ids[-1] == tokenizer.unk_token_id


@pytest.mark.parametrize("size", [5, 8])
def test_too_small_a_size(size: int) -> None:
    """Five special pieces, a, b, ##a and ##b."""
    with pytest.raises(ValueError, match=rf"^vocabulary_size is {size}, expected .* 9, the number"):
        train_vocabulary({"en": ["ab ba"]}, size)
    assert len(train_vocabulary({"en": ["ab ba"]}, 9)) == 9


@pytest.mark.parametrize("text", [{}, {"en": []}, {"en": [""], "de": iter(())}])
def test_no_text(text: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"^found no text, expected some"):
        train_vocabulary(text, 100)


@pytest.mark.parametrize(
    ("exponent", "expected"),
    # 640 and 40 lines of ten bytes, and room for 50: shares 16 to 1, 4 to 1, and 1 to 1.
    [(1.0, (47, 3)), (0.5, (40, 10)), (0.0, (25, 25))],
)
def test_exponent_reads_big_languages_less(exponent: float, expected: tuple[int, int]) -> None:
    """Each line is a word of its own, and all words read become pieces: so they can be counted."""
    big = ["q" + "".join(word) + "aaaa" for word in product("abcde", repeat=5)][:640]
    small = ["z" + "".join(word) + "vvvv" for word in product("vwxyu", repeat=5)][:40]
    text = {"en": big, "de": small}
    found = set(train_vocabulary(text, 5000, exponent=exponent, bytes_read=500).get_vocab())
    read = len(found & set(big)), len(found & set(small))
    # Shares are no whole lines, or are by the width of a rounding error.
    assert all(abs(a - b) <= 1 for a, b in zip(read, expected, strict=True)), read
    # From the whole of the text alike: about every 640 / n-th line.
    places = np.array([-1, *(i for i, word in enumerate(big) if word in found), 640])
    assert np.diff(places).max() <= 640 / expected[0] + 2
    everything = set(train_vocabulary(text, 5000, exponent=exponent).get_vocab())
    assert {*big, *small} <= everything
