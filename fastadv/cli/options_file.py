"""`--options FILE.yaml`: mistakes in it are reported with the file and the line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml
from jsonargparse import ActionConfigFile, ArgumentError, ArgumentParser


class OptionsFile(ActionConfigFile):
    """jsonargparse's configuration file, checked before its values are taken."""

    def __call__(
        self, parser: Any, cfg: Any, values: Any, option_string: str | None = None
    ) -> None:
        try:
            check(Path(values), parser)
        except ValueError as error:
            raise ArgumentError(None, str(error)) from error
        super().__call__(parser, cfg, values, option_string)


def check(path: Path, parser: ArgumentParser) -> None:
    """Refuses what is not a YAML mapping of the parser's options.

    Raises:
        ValueError: The file is missing, not UTF-8, not YAML, or names an unknown option.
    """
    if not path.is_file():
        kind = "a folder" if path.is_dir() else "no file of that name"
        raise ValueError(f"{path}: found {kind}, expected a YAML file of options")
    raw = path.read_bytes()
    try:
        root = yaml.compose(raw.decode("utf-8"), Loader=yaml.SafeLoader)
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise ValueError(
            f"{path}:{line}: found byte 0x{raw[error.start]:02x}, expected UTF-8 text"
        ) from error
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
        where = f"{path}:{mark.line + 1}" if mark else f"{path}"
        problem = getattr(error, "problem", None) or " ".join(str(error).split())
        raise ValueError(f"{where}: {problem}, expected YAML") from error
    if not isinstance(root, yaml.MappingNode):
        raise ValueError(f"{path}: found no mapping, expected lines of OPTION: VALUE")
    _check_keys(root, "", path, set(parser.get_defaults().keys()))


def _check_keys(node: yaml.MappingNode, prefix: str, path: Path, known: set[str]) -> None:
    for key, value in node.value:
        name = f"{prefix}{key.value}"
        group = any(option.startswith(f"{name}.") for option in known)
        if group and isinstance(value, yaml.MappingNode):
            _check_keys(value, f"{name}.", path, known)
        elif group or name not in known:
            line = key.start_mark.line + 1
            expected = "options below it" if group else "one that --help lists"
            raise ValueError(f"{path}:{line}: found the option {name!r}, expected {expected}")
