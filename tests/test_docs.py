"""Every command and every piece of Python in docs/*.md runs, as it is printed.

The blocks marked sh and python run in the page's order, in a folder that stands for the
repository's root: of the root it has what pages read from it, `fastadv/samples` (a page about the
code runs in the root itself). A block marked output is exactly what the block before it printed;
blocks marked text or mermaid are not run. Two things are not as at the reader's: `e5-small` is a
BERT of one layer of 16 units with random weights, which the cache gives under that name, and
`fastadv` and `python` are forks of one process that has imported the library already.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest
import tiny
from pages import Block, Shell, blocks, commands

from fastadv.backends import OPERATIONS
from fastadv.cli.dispatch import COMMANDS, parser
from fastadv.model_io import packaged

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = sorted(path.name for path in DOCS.glob("*.md"))
ABOUT_THE_CODE = {"add-a-kernel.md"}
OPTIONAL = ("datasets",)

LINK = re.compile(r"\[[^\]]*\]\(([^)#\s]*)(?:#([^)]*))?\)")
OPTION = re.compile(r"(?<![\w-])--[a-z][\w.-]*")


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """Of every command: `fastadv` and `python` on the path, the tiny model in the cache."""
    folder = tmp_path_factory.mktemp("docs")
    cache = folder / "cache"
    with pytest.MonkeyPatch.context() as patch, commands(folder) as programs:
        patch.setenv("FASTADV_CACHE", str(cache))
        patch.setattr(packaged, "_write_folder", write_tiny_model)
        patch.setattr(packaged, "_read_data_file", lambda alias: b"")
        packaged.resolve_model("e5-small")
        path = (str(programs), str(Path(sys.executable).parent), os.environ["PATH"])
        yield {**os.environ, "PATH": os.pathsep.join(path)}


def write_tiny_model(data: bytes, folder: Path) -> None:
    """What `resolve_model` finds in the cache, and so takes for e5-small's own files."""
    size = {"num_hidden_layers": 1, "hidden_size": 16, "num_attention_heads": 1}
    tiny.tiny_folder(folder, max_position_embeddings=128, **size)
    sizes = {file.name: file.stat().st_size for file in folder.iterdir()}
    (folder / packaged._MANIFEST).write_text(json.dumps(sizes))


@pytest.fixture
def shell(request: pytest.FixtureRequest, environment: dict[str, str], tmp_path: Path) -> Shell:
    """Where the reader of a page stands."""
    if request.param in ABOUT_THE_CODE:
        return Shell(ROOT, environment)
    shutil.copytree(ROOT / "fastadv" / "samples", tmp_path / "fastadv" / "samples")
    return Shell(tmp_path, environment)


def run_page(page: str, text: str, shell: Shell) -> None:
    """Runs the blocks of a page, until one fails or does not print what the page says."""
    printed = ""
    for block in blocks(text):
        where = f"docs/{page}:{block.line}"
        if block.language == "output":
            assert printed == block.code, f"{where}: is not what the block before it prints"
        elif block.language not in ("text", "mermaid"):
            assert block.language in ("sh", "python"), f"{where}: {block.language!r} is not run"
            skip_without_package(block, where)
            done = shell.run(block)
            printed = done.stdout
            assert done.returncode == 0, f"{where}: {block.code}\n{done.stdout}\n{done.stderr}"


def skip_without_package(block: Block, where: str) -> None:
    for package in OPTIONAL:
        if f"import {package}" in block.code and find_spec(package) is None:
            pytest.skip(f"{where} needs {package}; everything before it was run")


@pytest.mark.parametrize(("shell", "page"), [(p, p) for p in PAGES], indirect=["shell"], ids=PAGES)
def test_page(page: str, shell: Shell) -> None:
    run_page(page, (DOCS / page).read_text("utf-8"), shell)


@pytest.mark.parametrize("shell", ["README.md"], indirect=True)
@pytest.mark.parametrize(
    "broken",
    [
        "```sh\nfastadv evaluate --modell e5-small\n```\n",
        "```sh\nfastadv embed --model e5-small --input fastadv/samples/news/xx.test\n```\n",
        "```sh\ncat nothing | sort\ntrue\n```\n",
        "```python\nfrom fastadv import FinetuneConfig\n\nFinetuneConfig(step=3)\n```\n",
        "```python\nprint(1)\n```\n\n```output\n2\n```\n",
        "```bash\ntrue\n```\n",
    ],
    ids=["option", "file", "pipe", "python", "output", "unmarked"],
)
def test_a_broken_page_fails(broken: str, shell: Shell) -> None:
    with pytest.raises(AssertionError, match=r"docs/broken\.md:\d+: "):
        run_page("broken.md", broken, shell)


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page: str) -> None:
    text = (DOCS / page).read_text("utf-8")
    for target, heading in LINK.findall(text):
        if target.startswith("https://"):
            continue
        path = DOCS / target if target else DOCS / page
        assert path.exists(), target
        if heading:
            assert heading in anchors(path.read_text("utf-8")), f"{target}#{heading}"


def anchors(text: str) -> set[str]:
    """The anchors that GitHub gives to a page's headings."""
    headings = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", h).strip().lower().replace(" ", "-") for h in headings}


@pytest.mark.parametrize("page", PAGES)
def test_options_in_the_prose_exist(page: str) -> None:
    text = (DOCS / page).read_text("utf-8")
    known = {option for name in COMMANDS for option in options_of(name)}
    for code in re.findall(r"`([^`\n]*)`", text):
        for option in OPTION.findall(code):
            assert option in known, option


def options_of(command: str) -> set[str]:
    actions = parser()._subcommands_action._name_parser_map[command]._actions
    return {option for action in actions for option in action.option_strings}


@pytest.mark.parametrize("shell", ["README.md"], indirect=True)
def test_api_reference(shell: Shell) -> None:
    pytest.importorskip("pdoc", reason="the API reference needs pdoc")
    written = shell.folder / "api"
    command = f"python {DOCS / 'api.py'} {written}"
    done = shell.run(Block("sh", command, 1))
    assert done.returncode == 0, done.stderr
    # pdoc warns of what it cannot import, parse or resolve.
    assert done.stderr == ""
    found = {
        f"{path.relative_to(written).with_suffix('')}#{anchor}".replace("/", ".")
        for path in written.rglob("*.html")
        for anchor in re.findall(r'<(?:section|div) id="([\w.]+)"', path.read_text("utf-8"))
    }
    readers = ("as_documents", "as_sentences", "as_texts", "iter_texts", "read_documents")
    readers += ("read_conll", "read_texts", "read_pairs", "DataFile", "DataFile.encoding")
    measures = ("accuracy", "macro_f1", "entity_scores", "median_cosine", "retrieval_accuracy")
    wanted = {
        *(f"fastadv#AdversarialFinetuner.{n}" for n in ("fit", "step", "predict", "evaluate")),
        *(f"fastadv#{n}" for n in ("FinetuneConfig", "FinetuneConfig.steps", "Embedder.embed")),
        *(f"fastadv.data#{n}" for n in readers),
        *(f"fastadv.tasks.metrics#{n}" for n in measures),
        *(f"fastadv.ops.{n}#{n}{suffix}" for n in OPERATIONS for suffix in ("", "_ref")),
        *(f"fastadv.ops#{n}" for n in ("discriminator_loss", "generator_loss")),
    }
    assert wanted <= found, sorted(wanted - found)
    # <TAB> outside backticks would be taken for HTML, and not be seen.
    for path in written.rglob("*.html"):
        assert not re.findall(r"<[A-Z]+>", path.read_text("utf-8")), path
    private = [name for name in found if re.search(r"[.#]_(?!_)", name)]
    assert not private
