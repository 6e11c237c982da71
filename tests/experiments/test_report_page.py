"""report.html by itself, and in a browser as wide as a phone."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import pytest

from fastadv.experiments.experiment import Experiment
from fastadv.experiments.report import SECTIONS, write_report

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")
PHONE, TABLET = 360, 820
"""CSS pixels across."""


@pytest.fixture(scope="module")
def page(unbroken: Experiment) -> str:
    return write_report(unbroken)[0].read_text("utf-8")


def test_it_needs_no_other_file_and_no_network(page: str) -> None:
    sources = re.findall(r'(?:src|href)="([^"]*)"', page)
    assert sources and all(source.startswith("data:image/png;base64,") for source in sources)
    assert "url(" not in page and "@import" not in page and "<script" not in page


def test_it_is_well_formed_and_every_picture_has_words(page: str) -> None:
    class Check(HTMLParser):
        def __init__(self) -> None:
            super().__init__()
            self.open_tags: list[str] = []
            self.pictures = 0

        def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            if tag == "img":
                self.pictures += 1
                assert dict(attrs)["alt"]
            elif tag not in ("meta", "wbr"):
                self.open_tags.append(tag)

        def handle_endtag(self, tag: str) -> None:
            assert self.open_tags.pop() == tag

    check = Check()
    check.feed(page)
    assert not check.open_tags
    assert check.pictures == 4


def test_every_table_is_on_it(page: str, unbroken: Experiment) -> None:
    text = html.unescape(re.sub(r"<[^>]*>", "\n", page.replace("<wbr>", "")))
    cells = [cell.strip() for cell in text.splitlines()]
    for path in unbroken.folder.glob("*.csv"):
        for row in path.read_text("utf-8").splitlines()[1:]:
            assert row.split(",")[-1] in cells


def test_sections_in_the_order_of_their_worth(page: str) -> None:
    headings = re.findall(r"<h2>([^<]*)</h2>", page)
    assert headings[:2] == ["In short", "Scores"]
    assert headings == ["In short", *SECTIONS, "Machines and libraries"]
    # Each table and kind of figure under one heading.
    names = [name for names in SECTIONS.values() for name in names]
    assert len(names) == len(set(names))


def test_it_tells_settings_and_machines(page: str, unbroken: Experiment) -> None:
    config = unbroken.plan.config
    assert f"<dt>Steps</dt><dd>{config.steps}</dd>" in page
    assert f"<dt>Batch</dt><dd>{config.batch_size} examples</dd>" in page
    assert "0.001 (task), 0.01 (discriminator), 0.0001 (generator)" in page
    machines = (unbroken.folder / "environment.txt").read_text("utf-8")
    assert machines and html.escape(machines) in page


def test_names_cannot_break_the_page(unbroken: Experiment, tmp_path: Path) -> None:
    shutil.copytree(unbroken.folder, tmp_path / "out")
    results = tmp_path / "out" / "results.jsonl"
    lines = [json.loads(line) for line in results.read_text("utf-8").splitlines()]
    for line in lines:
        line["warnings"] = ['<script>alert("x")</script>']
    results.write_text("".join(json.dumps(line) + "\n" for line in lines), "utf-8")
    written = write_report(Experiment.of_folder(tmp_path / "out"))[0].read_text("utf-8")
    assert "<script>" not in written and "&lt;script&gt;" in written


@pytest.mark.parametrize("width", [PHONE, TABLET])
def test_in_a_browser_only_tables_scroll_sideways(page: str, width: int, tmp_path: Path) -> None:
    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    if browser is None:
        pytest.skip("no Chromium on the path")
    # A frame as wide as the screen: a window of a headless browser has a least width.
    (tmp_path / "frame.html").write_text(
        "<!doctype html><meta charset=utf-8><body>"
        f'<iframe id=f style="width:{width}px;height:4000px;border:0"></iframe>'
        f"<script>const page = {json.dumps(page).replace('</', '<' + chr(92) + '/')};"
        """
        const frame = document.getElementById("f");
        frame.onload = () => {
          const doc = frame.contentDocument, root = doc.documentElement;
          const box = e => e.getBoundingClientRect();
          document.body.dataset.found = JSON.stringify({
            page: root.scrollWidth,
            boxes: [...doc.querySelectorAll(".scroll")].map(e => box(e).right),
            wide: [...doc.querySelectorAll(".scroll")].filter(
              e => e.scrollWidth > e.clientWidth).length,
            images: [...doc.images].map(e => [e.naturalWidth, box(e).width, box(e).right]),
            text: parseFloat(doc.defaultView.getComputedStyle(doc.body).fontSize),
          });
        };
        frame.srcdoc = page;
        </script>""",
        "utf-8",
    )
    done = subprocess.run(
        [browser, "--headless", "--no-sandbox", "--disable-gpu", "--virtual-time-budget=10000",
         "--window-size=1000,1000", f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom",
         f"file://{tmp_path / 'frame.html'}"],
        capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip
    match = re.search(r'data-found="([^"]*)"', done.stdout)
    assert match, done.stderr
    found = json.loads(html.unescape(match[1]))
    assert found["page"] <= width
    assert found["boxes"] and all(right <= width for right in found["boxes"])
    # The test would see nothing if no table were too wide for a phone.
    assert found["wide"] > 0 or width != PHONE
    assert len(found["images"]) == 4
    for natural, shown, right in found["images"]:
        assert natural > 0 and 0.4 * width < shown + (width == TABLET) * width and right <= width
    assert found["text"] >= 16
