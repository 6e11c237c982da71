"""The script that a text is in, and texts counted by it."""

from __future__ import annotations

import pytest

from fastadv.data import Document, Sentence
from fastadv.data.scripts import SAMPLE, script_counts, script_of


@pytest.mark.parametrize(
    ("text", "script"),
    [
        ("Rain falls on Malmö.", "Latin"),
        ("Дождь идёт над гаванью.", "Cyrillic"),
        ("Η βροχή πέφτει.", "Greek"),
        ("يسقط المطر على الميناء", "Arabic"),
        ("גשם יורד על הנמל", "Hebrew"),
        ("बंदरगाह पर बारिश होती है", "Devanagari"),
        ("ฝนตกที่ท่าเรือ", "Thai"),
        ("항구에 비가 내린다", "Hangul"),
        ("雨落在港口。", "Chinese or Japanese"),
        ("港に雨が降る。", "Chinese or Japanese"),
        ("コーヒー", "Chinese or Japanese"),
        ("々", "Chinese or Japanese"),
        ("ﾃﾚﾋﾞ", "Chinese or Japanese"),
        ("ＡＢＣ", "Latin"),
        ("Անձրև է գալիս", "Armenian"),
    ],
)
def test_scripts(text: str, script: str) -> None:
    assert script_of(text) == script


def test_english_names_do_not_make_a_text_latin() -> None:
    # 24 Latin letters beside 20 others, which say as much as 40.
    assert script_of("GreyList Daemon は Postfix 用の委任サーバであり、実装しています") == (
        "Chinese or Japanese"
    )
    assert script_of("Демон GreyList для Postfix хранит адреса отправителей") == "Cyrillic"
    # What is left in it of another language makes a text no other.
    assert script_of("License GPLv3+: GNU GPL version 3 or later 参照") == "Latin"
    assert script_of("See mount_namespaces(7) (начиная с 3.12), and mknod") == "Latin"


@pytest.mark.parametrize("text", ["", "1984: 3.5 + 7!", "µ ª ʼ 𝒙", "ab вг"])
def test_a_text_without_a_script(text: str) -> None:
    assert script_of(text) is None


def test_counts_are_of_texts_spread_over_all() -> None:
    """The first half is in one script, the second in another, and some texts have no letters."""
    records = [Document("дождь")] * 3 * SAMPLE + [Document("rain")] * 3 * SAMPLE
    counts = script_counts(records)
    assert counts == {"Cyrillic": SAMPLE // 2, "Latin": SAMPLE // 2}
    # One more makes steps of seven.
    assert script_counts([*records, Document("42")]).total() <= SAMPLE
    assert script_counts([Document("42"), Document("rain")]) == {"Latin": 1}
    assert script_counts([]) == {}


def test_sentences_count_by_their_words() -> None:
    sentence = Sentence(("Дождь", "над", "Oslo", "."))
    assert script_counts([sentence]) == {"Cyrillic": 1}
