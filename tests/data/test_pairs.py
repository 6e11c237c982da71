from pathlib import Path

import corpora
import pytest

from fastadv.data import DataFile, read_pairs


def test_pairs(tmp_path: Path) -> None:
    source = corpora.write(tmp_path / "de", "\ufeffeins\r\n\nzwei\n  \ndrei\n")
    target = corpora.write(tmp_path / "en", "CCAT\tone\ntwo?\ntwo\nx\n \n")
    pairs = read_pairs(source, DataFile(target, "lines"))
    assert pairs == (["eins", "zwei"], ["CCAT\tone", "two"])
    with pytest.raises(ValueError, match=r"en:2: found 'two\?', expected LABEL<TAB>text"):
        read_pairs(source, str(target))


def test_labels_are_dropped(tmp_path: Path) -> None:
    source = corpora.write(tmp_path / "de", "eins\nzwei\n\ndrei\n")
    target = corpora.write(tmp_path / "en", "CCAT\tone\n\nCCAT\tx\nECAT\tb'thr\\xc3\\xa9e'\n")
    assert read_pairs(source, target) == (["eins", "drei"], ["one", "thrée"])
    assert read_pairs(target, source) == (["one", "thrée"], ["eins", "drei"])


def test_pairs_by_option(tmp_path: Path) -> None:
    source = corpora.write(tmp_path / "de", "München\n", "latin-1")
    target = corpora.write(tmp_path / "en", "Munich")
    pairs = read_pairs(DataFile(source, encoding="latin-1"), DataFile(target, "lines"))
    assert pairs == (["München"], ["Munich"])


@pytest.mark.parametrize(
    ("source", "target", "message"),
    [
        ("a\nb\n", "a\n", "de: found 2 lines, expected as many as the 1 of .*en$"),
        ("a\n", "a\nb\nc\nd", "de: found 1 lines, expected as many as the 4 of .*en$"),
        ("", "a\n", "de: found 0 lines, expected as many as the 1 of"),
        ("\n", "a\n", "de: found no pair of lines with .*en, expected some"),
        ("", "", "de: found no pair"),
    ],
)
def test_refuses(tmp_path: Path, source: str, target: str, message: str) -> None:
    first = corpora.write(tmp_path / "de", source)
    with pytest.raises(ValueError, match=message):
        read_pairs(first, corpora.write(tmp_path / "en", target))


def test_refuses_other_formats_and_files(tmp_path: Path) -> None:
    path = corpora.write(tmp_path / "de", "a\n")
    with pytest.raises(ValueError, match="de: found the format 'csv', expected 'lines' or"):
        read_pairs(path, DataFile(path, "csv"))
    with pytest.raises(ValueError, match="missing: found no file of that name"):
        read_pairs(path, tmp_path / "missing")
    with pytest.raises(ValueError, match="standard input: found it for both"):
        read_pairs("-", "-")
    with pytest.raises(ValueError, match="hf:a/b: found a data set of the hub, expected a file"):
        read_pairs(path, "hf:a/b")
