"""Text cut into sequences, some of it held out, and its file."""

from __future__ import annotations

import resource
import zipfile
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from math import sqrt
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from transformers import PreTrainedTokenizerFast

from fastadv.pretraining import corpus as corpus_module
from fastadv.pretraining.corpus import Corpus
from fastadv.pretraining.vocabulary import train_vocabulary

WORDS = {
    "en": ["rain", "wind", "harbour", "song", "north", "slow", "night", "stone", "river", "lamp"],
    "ru": ["дождь", "ветер", "порт", "песня", "север", "ночь", "камень", "река", "лампа", "снег"],
    "zh": list("雨风港歌北慢夜石河灯"),
}
MAX_LENGTH = 12


def texts(count: int = 150, seed: int = 0) -> dict[str, list[str]]:
    """Made-up paragraphs of 1 to 40 words, hardly two of them alike."""
    rng = np.random.default_rng(seed)
    sizes = {"en": count, "ru": count // 3, "zh": count // 5}
    return {
        language: [" ".join(rng.choice(words, rng.integers(1, 41))) for _ in range(sizes[language])]
        for language, words in WORDS.items()
    }


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return train_vocabulary(texts(), 130)


@pytest.fixture(scope="module")
def corpus(tokenizer: Any) -> Corpus:
    return Corpus.of(texts(), tokenizer, MAX_LENGTH, held_out=0.1)


def long_enough(paragraphs: list[str], tokenizer: Any) -> list[tuple[str, list[int]]]:
    """Paragraphs of four pieces or more with their ids."""
    ids = [tokenizer(text, add_special_tokens=False).input_ids for text in paragraphs]
    return [(text, own) for text, own in zip(paragraphs, ids, strict=True) if len(own) >= 4]


def sides(
    corpus: Corpus, language: str, paragraphs: list[str], tokenizer: Any
) -> tuple[list[str], list[str]]:
    """Which of the paragraphs are for training, and which are held out."""
    found: tuple[list[str], list[str]] = [], []
    held = set(corpus.held_out[language].starts.tolist())
    training = set(corpus.training[language].starts.tolist())
    start = 0
    for text, ids in long_enough(paragraphs, tokenizer):
        assert (start in held) != (start in training)
        found[start in held].append(text)
        start += len(ids)
    return found


def state(corpus: Corpus) -> list[Any]:
    """Everything it holds, to compare."""
    return [
        corpus.languages, corpus.max_length, corpus.vocabulary, corpus.special,
        {name: (ids.dtype, ids.tolist()) for name, ids in corpus.input_ids.items()},
        [{name: (s.starts.dtype, s.starts.tolist(), s.ends.dtype, s.ends.tolist())
          for name, s in side.items()} for side in (corpus.training, corpus.held_out)],
    ]  # fmt: skip


def test_ids_are_the_tokenizers(corpus: Corpus, tokenizer: Any) -> None:
    assert corpus.languages == ("en", "ru", "zh")
    for language, paragraphs in texts().items():
        expected = [i for _, ids in long_enough(paragraphs, tokenizer) for i in ids]
        assert corpus.input_ids[language].tolist() == expected
        assert corpus.input_ids[language].dtype == np.uint16
    assert corpus.special == {"cls": 2, "sep": 3, "mask": 4, "all": [0, 1, 2, 3, 4]}
    assert (corpus.vocabulary, corpus.max_length) == (130, MAX_LENGTH)


@pytest.mark.parametrize("max_length", [10, 11, 12, 31, 500])
def test_paragraphs_are_cut_evenly(tokenizer: Any, max_length: int) -> None:
    corpus = Corpus.of(texts(), tokenizer, max_length, held_out=0.1)
    longest = max_length - 2
    for language, paragraphs in texts().items():
        both = corpus.training[language], corpus.held_out[language]
        spans = sorted(
            (int(a), int(b)) for s in both for a, b in zip(s.starts, s.ends, strict=True)
        )
        start = 0
        for _, ids in long_enough(paragraphs, tokenizer):
            parts = [spans.pop(0) for _ in range(-(-len(ids) // longest))]
            # They begin where the paragraph does, follow one another, and end where it does.
            assert [a for a, _ in parts] == [start, *(b for _, b in parts[:-1])]
            start += len(ids)
            assert parts[-1][1] == start
            sizes = [b - a for a, b in parts]
            assert max(sizes) <= longest and max(sizes) - min(sizes) <= 1
        assert not spans
        assert sum(s.tokens for s in both) == start


def test_held_out_texts_are_not_in_training(tokenizer: Any) -> None:
    """Also where a text comes several times."""
    paragraphs = texts(300)["en"] * 2 + texts(300)["en"][::3]
    corpus = Corpus.of({"en": paragraphs}, tokenizer, MAX_LENGTH, held_out=0.2)
    training, held = sides(corpus, "en", paragraphs, tokenizer)
    assert held and not set(held) & set(training)


def test_held_out_texts_stay_when_others_are_added(tokenizer: Any) -> None:
    few, more = texts(200)["en"], texts(200, seed=1)["en"]
    mixed = [text for pair in zip(more, few, strict=True) for text in pair]
    found = []
    for paragraphs in (few, mixed):
        corpus = Corpus.of({"en": paragraphs}, tokenizer, MAX_LENGTH, held_out=0.2)
        found.append(sides(corpus, "en", paragraphs, tokenizer))
    (training, held), (training_mixed, held_mixed) = found
    assert set(held) == set(held_mixed) & set(few)
    assert set(training) == set(training_mixed) & set(few)
    assert len(held_mixed) > len(held)


def test_part_held_out(tokenizer: Any) -> None:
    paragraphs = [f"rain wind {i} river {i * i}" for i in range(2000)]
    assert len(long_enough(paragraphs, tokenizer)) == 2000
    corpus = Corpus.of({"en": paragraphs}, tokenizer, 64, held_out=0.2)
    # Checksums are as good as chance: within 5 standard deviations, as 1 in a million is not.
    assert abs(len(corpus.held_out["en"]) - 400) <= 5 * sqrt(2000 * 0.2 * 0.8)


@pytest.mark.parametrize(("share", "held"), [(0.0, 1), (1.0, 4)])
def test_neither_side_is_empty(tokenizer: Any, share: float, held: int) -> None:
    paragraphs = [f"rain wind river {i}" for i in range(5)]
    corpus = Corpus.of({"en": paragraphs, "ru": paragraphs}, tokenizer, 64, held_out=share)
    for language in ("en", "ru"):
        assert len(corpus.held_out[language]) == held
        assert len(corpus.training[language]) == 5 - held


def test_most_held_out(tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    paragraphs = texts(300)["en"]
    found = []
    for most in (2000, 7):
        monkeypatch.setattr(corpus_module, "MOST_HELD_OUT", most)
        corpus = Corpus.of({"en": paragraphs}, tokenizer, MAX_LENGTH, held_out=0.2)
        found.append(sides(corpus, "en", paragraphs, tokenizer))
    (_, held), (training, first) = found
    assert len(held) > 7 and first == held[:7]
    assert set(held[7:]) <= set(training)


def test_a_single_held_out_text_is_not_in_training(tokenizer: Any) -> None:
    paragraphs = ["rain wind river stone", "lamp lamp lamp lamp", "rain wind river stone"]
    corpus = Corpus.of({"en": paragraphs}, tokenizer, MAX_LENGTH, held_out=0.0)
    training, held = sides(corpus, "en", paragraphs, tokenizer)
    assert held and training and not set(held) & set(training)


def test_most_held_out_counts_texts(tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(corpus_module, "MOST_HELD_OUT", 7)
    paragraphs = texts(300)["en"] * 2
    corpus = Corpus.of({"en": paragraphs}, tokenizer, MAX_LENGTH, held_out=0.2)
    training, held = sides(corpus, "en", paragraphs, tokenizer)
    assert held and not set(held) & set(training)


@pytest.mark.parametrize(
    ("paragraphs", "number"),
    [([], 0), (["rain"], 0), (["rain wind river stone", "rain wind"], 1), (["1 2 3 4"] * 9, 1)],
)
def test_too_little_text(tokenizer: Any, paragraphs: list[str], number: int) -> None:
    message = rf"^found {number} different paragraphs of ru with 4 word pieces"
    with pytest.raises(ValueError, match=message):
        Corpus.of({"en": texts()["en"], "ru": paragraphs}, tokenizer, MAX_LENGTH)


def test_too_short_sequences(tokenizer: Any) -> None:
    """Of 9, 7 without the special ones, a paragraph of 8 has parts of 4; of 8 one of 7 has not."""
    with pytest.raises(ValueError, match=r"^max_length is 9, expected at least 10$"):
        Corpus.of(texts(), tokenizer, 9)
    corpus = Corpus.of(texts(), tokenizer, 10)
    for side in (corpus.training, corpus.held_out):
        assert min((s.ends - s.starts).min() for s in side.values()) >= 4


def test_names_of_special_tokens_are_text(tokenizer: Any) -> None:
    paragraphs = [f"rain [SEP] wind [MASK] {i} [CLS] song [PAD]" for i in range(3)]
    found = Corpus.of({"en": paragraphs}, tokenizer, 64).input_ids["en"]
    # [UNK] may stand there, as [ is no piece.
    assert not set(found.tolist()) & {0, 2, 3, 4}
    # The tokenizer is as it was.
    assert 4 in tokenizer("rain [MASK]").input_ids


def test_a_tokenizers_own_limits_do_not_count(tokenizer: Any, corpus: Corpus) -> None:
    inner = type(tokenizer.backend_tokenizer).from_str(tokenizer.backend_tokenizer.to_str())
    inner.enable_truncation(6)
    inner.enable_padding(length=6)
    names = {f"{n}_token": f"[{n.upper()}]" for n in ("pad", "unk", "cls", "sep", "mask")}
    other = PreTrainedTokenizerFast(tokenizer_object=inner, **names)
    assert state(Corpus.of(texts(), other, MAX_LENGTH, held_out=0.1)) == state(corpus)


@pytest.mark.parametrize("missing", ["mask", "cls", "sep"])
def test_a_tokenizer_without_a_special_token(tokenizer: Any, missing: str) -> None:
    names = {f"{n}_token": f"[{n.upper()}]" for n in ("cls", "sep", "mask") if n != missing}
    other = PreTrainedTokenizerFast(tokenizer_object=tokenizer.backend_tokenizer, **names)
    with pytest.raises(ValueError, match=rf"no {missing} token, expected \[{missing.upper()}\]$"):
        Corpus.of(texts(), other, MAX_LENGTH)


@pytest.mark.parametrize("exponent", [0.0, 0.7, 1.0])
def test_shares_and_frequencies(corpus: Corpus, exponent: float) -> None:
    tokens = {
        n: sum(b - a for a, b in zip(s.starts.tolist(), s.ends.tolist(), strict=True))
        for n, s in corpus.training.items()
    }
    powers = {n: count**exponent for n, count in tokens.items()}
    expected = {n: power / sum(powers.values()) for n, power in powers.items()}
    shares = corpus.shares(exponent)
    # Some roundings of float64.
    assert shares == pytest.approx(expected, rel=1e-12)
    frequencies = corpus.frequencies(exponent)
    assert frequencies.shape == (130,) and frequencies.sum() == pytest.approx(1, rel=1e-12)
    counts = {n: Counter(ids.tolist()) for n, ids in corpus.input_ids.items()}
    for piece in range(130):
        of = sum(expected[n] * counts[n][piece] / len(corpus.input_ids[n]) for n in expected)
        assert frequencies[piece] == pytest.approx(of, rel=1e-12, abs=1e-15)


class Numbered:
    """A tokenizer that reads numbers, in a vocabulary of any size."""

    cls_token_id, sep_token_id, mask_token_id = 2, 3, 4
    all_special_ids = (4, 0, 3, 1, 2)

    def __init__(self, size: int) -> None:
        self.size = size
        self.backend_tokenizer = self

    def __len__(self) -> int:
        return self.size

    def no_truncation(self) -> None:
        pass

    def no_padding(self) -> None:
        pass

    def encode_batch_fast(self, texts: list[str], add_special_tokens: bool) -> list[Any]:
        assert not add_special_tokens
        return [SimpleNamespace(ids=[int(word) for word in text.split()]) for text in texts]


@pytest.mark.parametrize(
    ("size", "kind"), [(65_536, np.uint16), (65_537, np.uint32), (250_002, np.uint32)]
)
def test_big_vocabularies(tmp_path: Path, size: int, kind: type) -> None:
    last = size - 1
    made = Corpus.of({"en": [f"5 6 7 {last}", f"{last} 8 9 10"]}, Numbered(size), 10)
    made.save(tmp_path / "corpus.npz")
    for corpus in (made, Corpus.load(tmp_path / "corpus.npz")):
        assert corpus.input_ids["en"].dtype == kind
        assert corpus.input_ids["en"].tolist() == [5, 6, 7, last, last, 8, 9, 10]
        assert corpus.vocabulary == size and corpus.special["all"] == [0, 1, 2, 3, 4]


def test_many_paragraphs_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    paragraphs = [f"{i} 1 1 1" for i in range(50)]
    monkeypatch.setattr(corpus_module, "CHUNK", 7)
    corpus = Corpus.of({"en": iter(paragraphs)}, Numbered(100), 10)
    assert corpus.input_ids["en"][::4].tolist() == list(range(50))


def test_round_trip(corpus: Corpus, tmp_path: Path) -> None:
    path = tmp_path / "new" / "folder" / "corpus.npz"
    corpus.save(path)
    loaded = Corpus.load(path)
    assert state(loaded) == state(corpus)
    assert loaded.fingerprint() == corpus.fingerprint()
    assert loaded.shares(0.7) == corpus.shares(0.7)
    assert [file.name for file in path.parent.iterdir()] == ["corpus.npz"]


def test_fingerprints_differ(corpus: Corpus) -> None:
    ids = {name: own.copy() for name, own in corpus.input_ids.items()}
    ids["ru"][3] += 1
    other = replace(corpus, input_ids=ids).fingerprint()
    assert other["ru"] != corpus.fingerprint()["ru"] and other["en"] == corpus.fingerprint()["en"]


def assert_refused(path: Path) -> None:
    with pytest.raises(ValueError) as error:
        Corpus.load(path)
    message = str(error.value)
    assert message.startswith(f"{path}: ") and "\n" not in message


@pytest.fixture
def saved(corpus: Corpus, tmp_path: Path) -> Path:
    path = tmp_path / "corpus.npz"
    corpus.save(path)
    return path


def test_no_file(tmp_path: Path) -> None:
    assert_refused(tmp_path / "nowhere.npz")
    assert_refused(tmp_path)


def test_truncated(saved: Path) -> None:
    raw = saved.read_bytes()
    for size in (*range(0, len(raw), 97), len(raw) - 1):
        saved.write_bytes(raw[:size])
        assert_refused(saved)


def test_damaged(saved: Path) -> None:
    """Bytes of the compressed ids."""
    raw = saved.read_bytes()
    with zipfile.ZipFile(saved) as file:
        entry = file.getinfo("ids.en.npy")
    # The header: 30 bytes, the name, and what there is besides.
    extra = int.from_bytes(raw[entry.header_offset + 28 :][:2], "little")
    begin = entry.header_offset + 30 + len(entry.filename) + extra
    for place in range(begin, begin + entry.compress_size, 5):
        saved.write_bytes(raw[:place] + bytes([raw[place] ^ 0x10]) + raw[place + 1 :])
        assert_refused(saved)


def test_a_damaged_list_of_contents(saved: Path) -> None:
    raw = saved.read_bytes()
    begin = raw.index(b"PK\x01\x02")
    for place in range(begin + 4, begin + 12):
        saved.write_bytes(raw[:place] + bytes([raw[place] ^ 0x41]) + raw[place + 1 :])
        try:
            Corpus.load(saved)
        except ValueError as error:
            assert str(error).startswith(f"{saved}: ")


Arrays = dict[str, np.ndarray]


def changed(**arrays: Any) -> Callable[[Arrays], Arrays]:
    return lambda found: found | {n.replace("__", "."): np.array(a) for n, a in arrays.items()}


def out_of_range(name: str, value: int) -> Callable[[Arrays], Arrays]:
    def change(found: Arrays) -> Arrays:
        found[name][-1] = value
        return found

    return change


@pytest.mark.parametrize(
    "change",
    [
        lambda found: {"weights": np.zeros(3)},
        changed(format=2),
        changed(format="one"),
        changed(languages=["en", "fr"]),
        changed(training__starts__en=np.zeros(0, np.int64), training__lengths__en=[0][:0]),
        out_of_range("training.starts.en", -1),
        out_of_range("training.starts.en", 1 << 40),
        out_of_range("held_out.lengths.zh", 65_535),
        out_of_range("training.lengths.ru", 0),
        out_of_range("ids.ru", 130),
        changed(format=[1, 2]),
        changed(languages="en"),
    ],
)
def test_foreign_contents(saved: Path, change: Callable[[Arrays], Arrays]) -> None:
    with np.load(saved) as file:
        found = dict(file)
    np.savez(saved, **change(found))
    assert_refused(saved)


def test_a_single_array(saved: Path) -> None:
    with saved.open("wb") as file:
        np.save(file, np.arange(3))
    assert_refused(saved)


def test_every_array_is_needed(saved: Path) -> None:
    with np.load(saved) as file:
        found = dict(file)
    # 8 of the whole, and 5 of each of three languages.
    assert len(found) == 8 + 15
    for name in found:
        np.savez(saved, **{other: array for other, array in found.items() if other != name})
        assert_refused(saved)


class Touching:
    """What writes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


@pytest.mark.parametrize("name", ["format", "languages", "ids.en", "held_out.starts.zh"])
def test_pickled_objects_are_not_run(saved: Path, name: str) -> None:
    trace = saved.with_name("trace")
    with np.load(saved) as file:
        found = dict(file)
    np.savez(saved, **found | {name: np.array([Touching(trace)], object)})
    assert_refused(saved)
    assert not trace.exists()


def test_text_is_no_corpus(saved: Path) -> None:
    for content in (b"", b"just text\n", b"PK\x03\x04", b"\x93NUMPY"):
        saved.write_bytes(content)
        assert_refused(saved)


@pytest.mark.parametrize("share", [0.0, 0.3, 0.9, 1.0])
def test_a_full_disk(corpus: Corpus, saved: Path, share: float) -> None:
    """A limit on the size of files stands for it, at 1.0 one byte less than is needed."""
    before = saved.read_bytes()
    limit = max(int(share * len(before)) - 1, 0)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        with pytest.raises(OSError):
            corpus.save(saved)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert saved.read_bytes() == before
    assert list(saved.parent.iterdir()) == [saved]


@pytest.mark.parametrize("error", [MemoryError, KeyboardInterrupt])
def test_a_save_cut_short(
    corpus: Corpus, saved: Path, monkeypatch: pytest.MonkeyPatch, error: type[BaseException]
) -> None:
    before = saved.read_bytes()

    def stopped(file: Any, **arrays: Any) -> None:
        file.write(b"PK")
        raise error

    monkeypatch.setattr(np, "savez_compressed", stopped)
    with pytest.raises(error):
        corpus.save(saved)
    assert saved.read_bytes() == before
    assert list(saved.parent.iterdir()) == [saved]


def test_a_folder_in_the_way(corpus: Corpus, tmp_path: Path) -> None:
    path = tmp_path / "corpus.npz"
    path.mkdir()
    with pytest.raises(OSError):
        corpus.save(path)
    assert list(tmp_path.iterdir()) == [path]
