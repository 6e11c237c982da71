from pathlib import Path

import pytest
from data_helpers import shared_data

from fastadv.data import Sentence, read_conll, to_iob2
from fastadv.data.formats import recognise
from fastadv.data.source import open_lines


def write(folder: Path, content: str | bytes) -> Path:
    path = folder / "eng.testa"
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def read(folder: Path, content: str) -> list[tuple[str, str]]:
    sentences = read_conll(write(folder, content))
    return [(" ".join(s.words), " ".join(s.tags or ())) for s in sentences]


@pytest.mark.parametrize(
    ("tags", "expected"),
    [
        ("I-PER I-PER O I-LOC", "B-PER I-PER O B-LOC"),
        ("I-PER B-PER I-PER", "B-PER B-PER I-PER"),
        ("I-PER I-LOC I-LOC", "B-PER B-LOC I-LOC"),
        ("B-PER I-PER O B-LOC", "B-PER I-PER O B-LOC"),
        ("B-PER I-LOC", "B-PER B-LOC"),
        ("O I-LOC I-LOC", "O B-LOC I-LOC"),
        ("O O", "O O"),
        ("", ""),
    ],
)
def test_iob1_and_iob2_become_iob2(tags: str, expected: str) -> None:
    assert " ".join(to_iob2(tags.split())) == expected
    assert " ".join(to_iob2(expected.split())) == expected


def test_conll_2003(tmp_path: Path) -> None:
    content = """-DOCSTART- -X- -X- O

EU NNP I-NP I-ORG
rejects VBZ I-VP O
German JJ I-NP I-MISC
British JJ B-NP B-MISC
lamb NN I-NP O

-DOCSTART- -X- O O

# NN I-NP O
5 CD I-NP O
"""
    assert read(tmp_path, content) == [
        ("EU rejects German British lamb", "B-ORG O B-MISC B-MISC O"),
        ("# 5", "O O"),
    ]


def test_conll_2003_german_has_a_lemma_and_tabs_do_as_well(tmp_path: Path) -> None:
    content = "Nordrhein\tNordrhein\tNE\tI-NC\tI-LOC\nist\tsein\tVAFIN\tI-VC\tO\n"
    assert read(tmp_path, content) == [("Nordrhein ist", "B-LOC O")]


def test_conll_2002_document_start_needs_no_blank_line(tmp_path: Path) -> None:
    content = "-DOCSTART- -DOCSTART- O\nDe Art O\nTandard N B-ORG\n-DOCSTART- X O\nAan Prep O\n"
    assert read(tmp_path, content) == [("De Tandard", "O B-ORG"), ("Aan", "O")]


@pytest.mark.parametrize("end", ["", "\n", "\n\n\n", "\n \t \n"])
def test_ends_of_a_file(tmp_path: Path, end: str) -> None:
    assert read(tmp_path, "\ufeff\n\na O\n\n\nb  O " + end) == [("a", "O"), ("b", "O")]


def test_carriage_returns(tmp_path: Path) -> None:
    assert read(tmp_path, "a O\r\n\r\nb B-X\r\n") == [("a", "O"), ("b", "B-X")]


def test_odd_spaces_belong_to_the_word(tmp_path: Path) -> None:
    content = "1\xa0000 O\n\u3000 O\n\x85 O\n\u2028 O\n"
    sentences = read_conll(write(tmp_path, content))
    assert sentences == [Sentence(("1\xa0000", "\u3000", "\x85", "\u2028"), ("O",) * 4)]


UNIVERSAL = """# newdoc id = 1
# sent_id = 1-1
# text = Al in Rome O
1\tAl\tB-OTH\t-\tx
2\tin\tO
3\tRome\tB-LOC\t-\tx

# sent_id = 1-2
# text = #
1\t#\tB-O\t-\tx
2\t1 000\tI-OTH\t-\tx
3\tX\tI-O\t-\tx
4\tY\tB-OTHER\t-\tx
"""


def test_where_a_sentence_begins(tmp_path: Path) -> None:
    for content in (
        "\n-DOCSTART- O\na O\nb O\n\n\nc O",
        "# x\n\n1\ta\tO\n2\tb\tO\n\n# y\n1\tc\tO\n",
    ):
        path = write(tmp_path, content)
        assert [s.where for s in read_conll(path)] == [f"{path}:3", f"{path}:7"]


def test_spaces_between_tabs_belong_to_the_word(tmp_path: Path) -> None:
    assert read_conll(write(tmp_path, "1 000 \t O\nNew York\tB-LOC\n")) == [
        Sentence(("1 000", "New York"), ("O", "B-LOC"))
    ]


def test_universal_ner(tmp_path: Path) -> None:
    assert read_conll(write(tmp_path, UNIVERSAL)) == [
        Sentence(("Al", "in", "Rome"), ("O", "O", "B-LOC")),
        Sentence(("#", "1 000", "X", "Y"), ("O", "O", "O", "B-OTHER")),
    ]


def test_the_other_type_of_universal_ner_is_a_type_elsewhere(tmp_path: Path) -> None:
    assert read(tmp_path, "Linux B-OTH\n") == [("Linux", "B-OTH")]


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("1\tO\n\n2\tO\nb\tO\n", [("1", "O"), ("2 b", "O O")]),
        ("1\tCD\tO\n\nb\tX\tO\n", [("1", "O"), ("b", "O")]),
        ("1\tone\tO\n\n1\ttwo\tO\n2\tb\tO\n", [("one", "O"), ("two b", "O O")]),
        ("# text = one\n1\tone\tO\n", [("one", "O")]),
        ("1 CD O\n2 CD O\n", [("1 2", "O O")]),
    ],
)
def test_numbers_are_words_or_indices(
    tmp_path: Path, content: str, expected: list[tuple[str, str]]
) -> None:
    assert read(tmp_path, content) == expected


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("a O\nb\n", "testa:2: found the one column 'b', expected a word first and its tag last"),
        ("a X B-X O\n\nb X I-X\n", "testa:3: found 3 columns, expected 4 as in the lines before"),
        ("a O\nb X O\n", "testa:2: found 3 columns, expected 2 as in the lines before"),
        ("1\ta\tO\n2\t \tO\n", "testa:2: found an empty word, expected a word in the second"),
        ("a X O\nb X S-PER\n", "testa:2: found the tag 'S-PER', expected O, B-TYPE or I-TYPE"),
        ("a B-\n", "testa:1: found the tag 'B-'"),
        ("\n-DOCSTART- O\n", "testa: found no sentence, expected a word and its tag a line"),
        ("1\ta\tO\n2\tb\tO\n4\tc\tO\n", "testa:3: found the index '4', expected 3"),
        ("1\ta\tO\n2\tb\tO\n3-4\tc\tO\n", "testa:3: found the index '3-4', expected 3"),
        ("1\ta\tO\n2\tb\tO\tO\n", "testa:2: found 4 columns, expected 3 or 5"),
        ("1\ta\tO\n2\tb\tX-PER\n", "testa:2: found the tag 'X-PER'"),
    ],
)
def test_refuses(tmp_path: Path, content: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_conll(write(tmp_path, content))


def test_a_file_without_blank_lines_is_not_one_sentence(tmp_path: Path) -> None:
    message = "testa:1: found a sentence of more than 100000 words, expected a blank line between"
    with pytest.raises(ValueError, match=message):
        read_conll(write(tmp_path, "a O\n" * 100_001))
    (sentence,) = read_conll(write(tmp_path, "a O\n" * 100_000))
    assert len(sentence.words) == 100_000


def test_latin_1_is_refused_by_line(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="testa:2: found byte 0xf1 at position 5, expected UTF-8"):
        read_conll(write(tmp_path, b"a O\nEspa\xf1a B-LOC\n"))


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("EU NNP I-ORG\n", True),
        ("\n-DOCSTART- -X- -X- O\n", True),
        (UNIVERSAL, True),
        ("1\tAl\tB-PER\t-\tx\n", True),
        ("The shares rose.\nEU NNP I-ORG\n", False),
        ("# a heading\nThe shares rose.\n", False),
        ("O\n", False),
        ("", False),
    ],
)
def test_column_files_are_told_from_text(tmp_path: Path, content: str, expected: bool) -> None:
    path = write(tmp_path, content)
    assert (recognise(open_lines(path), path) == "columns") is expected


@pytest.mark.parametrize(
    ("name", "sentences", "words"),
    [
        ("English-EWT/en_ewt-ud-train.commit0c7ce0d.iob2", 12543, 204579),
        ("Danish-DDT/da_ddt-ud-train.iob2", 4383, 80378),
        ("Portuguese-Bosque/pt_bosque-ud-train.iob2", 7018, 171776),
        ("Chinese-GSDSIMP/zh_gsdsimp-ud-test.iob2", 500, 12012),
    ],
)
def test_real_sentences(name: str, sentences: int, words: int) -> None:
    found = read_conll(shared_data("uner", *name.split("/")))
    assert len(found) == sentences
    assert sum(len(s.words) for s in found) == words
    kinds = ("PER", "ORG", "LOC")
    tags = {tag for s in found for tag in s.tags or ()}
    assert tags == {"O", *(f"{mark}-{kind}" for mark in "BI" for kind in kinds)}
