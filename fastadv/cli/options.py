"""Options that several commands share, and how their text becomes data."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jsonargparse import ArgumentParser, DefaultHelpFormatter, Namespace

from fastadv.cli.options_file import OptionsFile
from fastadv.config import FinetuneConfig, Recipe

if TYPE_CHECKING:
    from fastadv.data import DataFile


class Help(DefaultHelpFormatter):
    """Shows each option's text and default, but no default where the text says what happens."""

    def _get_help_string(self, action: argparse.Action) -> str:
        text = action.help or ""
        if action.required:
            return f"{text} (required)"
        if action.default in (None, [], False, argparse.SUPPRESS):
            return text
        return f"{text} (default: %(default)s)"


class _Append(argparse.Action):
    """Adds to the list so far, whether from the command line or from an options file."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Any,
        option_string: str | None = None,
    ) -> None:
        setattr(namespace, self.dest, [*each(getattr(namespace, self.dest)), values])


def add_repeated(parser: ArgumentParser, name: str, metavar: str, text: str) -> None:
    """An option that may be given more than once; in an options file a list or a mapping."""
    parser.add_argument(
        name, action=_Append, type=_repeated, default=[], metavar=metavar, help=text
    )


def each(value: Any) -> list[str]:
    """The values of a repeated option, wherever they came from."""
    if isinstance(value, Mapping | Namespace):
        items = value.items() if isinstance(value, Mapping) else vars(value).items()
        return [f"{name}={item}" for name, item in items]
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [str(item) for item in value]
    return [] if value is None else [str(value)]


def _repeated(value: Any) -> Any:
    return value if isinstance(value, str) else each(value)


def add_options_file(parser: ArgumentParser) -> None:
    parser.add_argument(
        "--options",
        action=OptionsFile,
        metavar="FILE.yaml",
        help="take options from this file, such as the run.yaml of a run; options after it "
        "override it, repeated ones are added",
    )


def add_quiet(parser: ArgumentParser) -> None:
    parser.add_argument(
        "--quiet", action="store_true", help="say nothing on standard error but warnings and errors"
    )


def add_recipe(parser: ArgumentParser) -> None:
    """`--recipe`, the short form of `--config.recipe`."""
    parser.add_argument(
        "--recipe",
        type=Recipe | None,
        default=None,
        help="what settings get that are left open: the paper's values, or what fits the encoder "
        "(--config.recipe)",
    )


def settings_of(options: Namespace) -> FinetuneConfig:
    """`--config`, into which `--recipe` is put, in the options too.

    Raises:
        ValueError: A setting is refused.
    """
    if options.recipe is not None:
        options.config.recipe = options.recipe
    # What is kept of the options says it once.
    del options["recipe"]
    return FinetuneConfig(**options.config.as_dict())


def add_json(parser: ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print one JSON object, not a table")


def add_model(parser: ArgumentParser, finetuned: bool) -> None:
    """`--model`; `finetuned` if the command needs labels."""
    what = (
        "folder of a finetuned model, such as best/ or last/ of a run"
        if finetuned
        else "hub id, folder (of a finetuned model too), fastadv-mini or e5-small"
    )
    parser.add_argument("--model", type=str, required=True, help=what)


def model_of(options: Namespace) -> str:
    """`--model`.

    Raises:
        ValueError: It is the folder of a run, which holds models but is not one.
    """
    folder = Path(options.model)
    models = [
        folder / name for name in ("best", "last") if (folder / name / "config.json").exists()
    ]
    if models and not (folder / "config.json").exists():
        raise ValueError(f"{folder}: found a run, expected a model, such as {models[0]}")
    return str(options.model)


def add_input_output(parser: ArgumentParser, form: str) -> None:
    """`--input` and `--output` of a command that streams; `form` says what the output is."""
    parser.add_argument("--input", type=str, default="-", help="file to read; - is standard input")
    parser.add_argument(
        "--output",
        type=str,
        default="-",
        help=f"file to write, there when it is complete; {form}",
    )


def add_chunk_size(parser: ArgumentParser) -> None:
    parser.add_argument(
        "--chunk_size",
        type=int,
        default=1024,
        help="texts read, computed and written at a time; memory does not grow beyond them",
    )


def add_reading(parser: ArgumentParser, names: str = "") -> None:
    """`--encoding`, `--format` and `--columns`.

    Args:
        parser: Gets the options.
        names: What may stand before `=`, for the help. Empty for a command that reads one file.
    """
    prefix = "[NAME=]" if names else ""
    scope = f"; with NAME= of that file alone: {names}" if names else ""
    add_repeated(
        parser,
        "--encoding",
        f"{prefix}ENCODING",
        f"utf-8 or latin-1 (the CoNLL files as distributed); utf-8 by default{scope}",
    )
    add_repeated(
        parser,
        "--format",
        f"{prefix}FORMAT",
        "documents (LABEL<TAB>text), columns (CoNLL, Universal NER), lines, csv, tsv or jsonl; "
        f"by default recognised{scope}",
    )
    add_repeated(
        parser,
        "--columns",
        f"{prefix}FIELD=COLUMN,...",
        "what csv, tsv and jsonl files call our fields text, label, tokens and tags, such as "
        f"text=body,label=topic{scope}",
    )


class Reading:
    """How each file of a command is to be read.

    Args:
        options: With `encoding`, `format` and `columns`.
        names: The names that may stand before `=`.

    Raises:
        ValueError: An option names no file of the command, or is not of its form.
    """

    def __init__(self, options: Namespace, names: Sequence[str]) -> None:
        self._by_name: dict[str | None, dict[str, Any]] = {}
        known = list(dict.fromkeys(names))
        for option in ("encoding", "format"):
            for given in each(options[option]):
                file, equals, value = given.rpartition("=")
                self._set(option, file if equals else None, value, known)
        for given in each(options.columns):
            self._set("columns", *_columns(given), known)

    def _set(self, option: str, name: str | None, value: Any, known: list[str]) -> None:
        if name is not None and name not in known:
            raise ValueError(
                f"--{option} names {name!r}, expected one of {', '.join(known) or 'no names'}"
            )
        self._by_name.setdefault(name, {})[option] = value

    def file(self, name: str, path: str) -> str | DataFile:
        """The data behind a path: with the options for this name, else those without a name.

        Raises:
            ValueError: An option has an unknown value, or does not fit another.
        """
        from fastadv.data import DataFile
        from fastadv.data.data_file import is_hub_name

        own, common = self._by_name.get(name, {}), dict(self._by_name.get(None, {}))
        # An option for all files means those that it can apply to.
        if is_hub_name(path):
            common = {option: v for option, v in common.items() if option == "columns"}
        if own.get("format") in ("documents", "columns", "lines"):
            common.pop("columns", None)
        if not own and not common:
            return path
        try:
            return DataFile(path, **(common | own))
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error

    def files(self, paths: Mapping[str, str]) -> dict[str, Any]:
        """The data behind each path; see `file`."""
        return {name: self.file(name, path) for name, path in paths.items()}


def _columns(given: str) -> tuple[str | None, dict[str, str]]:
    first, *rest = given.split(",")
    name, columns = None, {}
    if first.count("=") == 2:
        name, _, first = first.partition("=")
    for pair in [first, *rest]:
        field, _, column = pair.partition("=")
        if not (field and column):
            raise ValueError(
                f"--columns is {given!r}, expected FIELD=COLUMN,... such as text=body,label=topic"
            )
        columns[field] = column
    return name, columns


def named(pairs: Any, option: str) -> dict[str, str]:
    """NAME=FILE options as a mapping.

    Raises:
        ValueError: One is not of that form, or a name comes twice.
    """
    files: dict[str, str] = {}
    for pair in each(pairs):
        name, _, path = pair.partition("=")
        if not (name and path):
            raise ValueError(f"{option} is {pair!r}, expected NAME=FILE")
        if name in files:
            raise ValueError(f"{option} names {name!r} twice, expected different names")
        files[name] = path
    return files


def is_read_once(path: str) -> bool:
    """Whether it is standard input or a pipe, which a second reader would find empty."""
    return path == "-" or Path(path).is_fifo()
