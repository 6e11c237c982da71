"""Help, version, and what is imported for them."""

from __future__ import annotations

import argparse
import dataclasses
import re
import subprocess
import sys

import pytest

import fastadv
from fastadv import FinetuneConfig
from fastadv.cli import main
from fastadv.cli.dispatch import COMMANDS, parser
from fastadv.config import TASK_SETTINGS


def squeezed(text: str) -> str:
    """Without white space: help breaks lines at hyphens too."""
    return "".join(text.split()).lower()


def shown(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    with pytest.raises(SystemExit) as stop:
        main([*arguments, "--help"])
    assert stop.value.code == 0
    return " ".join(capsys.readouterr().out.split())


def subparsers() -> dict[str, argparse.ArgumentParser]:
    found = [a for a in parser()._actions if isinstance(a, argparse._SubParsersAction)]
    return dict(found[0].choices)  # type: ignore[arg-type]


@pytest.mark.parametrize("command", COMMANDS)
def test_every_option_is_explained(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    text = shown(capsys, command)
    for action in subparsers()[command]._actions:
        assert action.help and action.help.strip(), action.dest
        for option in action.option_strings:
            assert option in text
        if action.help != argparse.SUPPRESS:
            assert squeezed(action.help)[:40] in squeezed(text), action.dest
    assert squeezed(COMMANDS[command].DESCRIPTION) in squeezed(text)
    assert "null" not in text


def test_every_setting_says_where_its_default_is_from(
    capsys: pytest.CaptureFixture[str],
) -> None:
    text = shown(capsys, "train")
    assert "(paper, 3.2, 3.3)" in text
    for field in dataclasses.fields(FinetuneConfig):
        assert f"--config.{field.name} " in text


@pytest.mark.parametrize("name", ["lr_task", "lr_discriminator", "lr_generator", "max_length"])
def test_defaults_by_task_are_shown_as_they_are(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    text = shown(capsys, "train")
    text = text[text.index(f"--config.{name} ", text.index("sequentially")) :]
    text = text[: text.index(" --config.", 10)]
    numbers = [float(n) for n in re.findall(r"\d[\d.]*(?:e-\d+)?", text.replace("paper, 3.2", ""))]
    for task in TASK_SETTINGS:
        assert getattr(FinetuneConfig().resolved(task), name) in numbers


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["--version"])
    assert stop.value.code == 0
    assert capsys.readouterr().out.split()[-1] == fastadv.__version__


def test_help_imports_nothing_slow() -> None:
    script = (
        "import sys\n"
        "from fastadv.cli import main\n"
        "try:\n"
        "    main(['train', '--help'])\n"
        "except SystemExit:\n"
        "    slow = {'torch', 'transformers', 'numpy', 'matplotlib'} & set(sys.modules)\n"
        "    sys.exit(f'imported {slow}' if slow else 0)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_every_public_name_is_found() -> None:
    for name in fastadv.__all__:
        assert getattr(fastadv, name) is not None and name in dir(fastadv)
    with pytest.raises(AttributeError, match="no attribute 'nonesuch'"):
        fastadv.nonesuch  # noqa: B018
