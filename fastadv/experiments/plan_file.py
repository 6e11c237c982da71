"""Experiments described in YAML."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args

import yaml

from fastadv.config import FinetuneConfig
from fastadv.data import DataFile
from fastadv.data.data_file import is_hub_name
from fastadv.experiments.plan import (
    ARMS,
    SEEDS,
    Arm,
    ExperimentPlan,
    SharesFrom,
    Source,
    Target,
)

_NEEDED = {"name", "task", "model", "source", "targets"}
_KNOWN = _NEEDED | {"seeds", "config", "threads", "arms", "together", "counted"}
_ARM = {"adversarial", "shares", "config"}
_SOURCE = {"language", "train", "dev", "test"}
_TARGET_NEEDED = {"unlabeled", "test"}
_TARGET = _TARGET_NEEDED | {"heldout", "translations"}


def read_plan(path: Path, folder: Path | None = None) -> ExperimentPlan:
    """The experiment that a YAML file describes.

    Its keys are `name`, `task`, `model`, `source` (with `language`, `train`, `dev`, `test`),
    `targets` (by language: `unlabeled`, `test`, and perhaps `heldout` and `translations`, a list
    of two files), and perhaps `seeds`, `threads`, `config` (fields of `FinetuneConfig`), `arms` (by
    name: fields of `Arm`), `together` and `counted` (see `ExperimentPlan`). A data
    file is a path, or a mapping with `path` and fields of `DataFile`.

    Args:
        path: The file.
        folder: The folder that relative paths of data files start from; by default the file's own.

    Raises:
        ValueError: The file is missing, is no YAML, lacks a key or has one too many, or a value is
            refused by the class that takes it.
    """
    try:
        found = yaml.safe_load(path.read_text("utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ValueError(f"{path}: expected an experiment in YAML: {error}") from error
    base = path.parent if folder is None else folder
    try:
        return _plan(found, base)
    except (ValueError, TypeError) as error:
        raise ValueError(f"{path}: {error}") from error


def _plan(found: Any, base: Path) -> ExperimentPlan:
    _check("the experiment", found, _NEEDED, _KNOWN)
    source = found["source"]
    _check("source", source, _SOURCE, _SOURCE)
    _check("targets", found["targets"])
    targets = []
    for language, target in found["targets"].items():
        _check(f"target {language}", target, _TARGET_NEEDED, _TARGET)
        pair = target.get("translations")
        if pair is not None and (not isinstance(pair, list) or len(pair) != 2):
            raise ValueError(f"target {language}: found translations {pair!r}, expected two files")
        targets.append(
            Target(
                str(language),
                _file(target["unlabeled"], base),
                _file(target["test"], base),
                _file(target["heldout"], base) if "heldout" in target else None,
                None if pair is None else (_file(pair[0], base), _file(pair[1], base)),
            )
        )
    return ExperimentPlan(
        name=str(found["name"]),
        task=found["task"],
        model=str(found["model"]),
        source=Source(
            str(source["language"]), *(_file(source[n], base) for n in ("train", "dev", "test"))
        ),
        targets=tuple(targets),
        seeds=tuple(_whole_numbers(found.get("seeds", SEEDS))),
        config=FinetuneConfig(**found.get("config") or {}),
        threads=found.get("threads"),
        arms=_arms(found["arms"]) if "arms" in found else ARMS,
        together=bool(found.get("together", False)),
        counted=found.get("counted"),
    )


def _arms(found: Any) -> tuple[Arm, ...]:
    _check("arms", found)
    arms = []
    for name, fields in found.items():
        _check(f"arm {name}", fields or {}, set(), _ARM)
        values = dict(fields or {})
        if (shares := values.get("shares", "config")) not in get_args(SharesFrom):
            raise ValueError(
                f"arm {name}: found shares {shares!r}, expected one of "
                f"{', '.join(get_args(SharesFrom))}"
            )
        arms.append(Arm(str(name), **values))
    return tuple(arms)


def _whole_numbers(found: Any) -> list[int]:
    if not isinstance(found, list | tuple) or not all(type(seed) is int for seed in found):
        raise ValueError(f"found the seeds {found!r}, expected a list of whole numbers")
    return list(found)


def _file(found: Any, base: Path) -> DataFile:
    fields = dict(found) if isinstance(found, Mapping) else {"path": found}
    path = fields.pop("path", None)
    if not isinstance(path, str):
        raise ValueError(f"found {found!r} for a data file, expected a path")
    return DataFile(path if is_hub_name(path) else str(base / path), **fields)


def _check(
    what: str, found: Any, needed: set[str] | None = None, known: set[str] | None = None
) -> None:
    if not isinstance(found, Mapping):
        raise ValueError(f"{what}: found {type(found).__name__}, expected a mapping")
    if missing := sorted((needed or set()) - found.keys()):
        raise ValueError(f"{what}: found no {missing[0]}, expected it")
    if known is not None and (unknown := sorted(map(str, found.keys() - known))):
        raise ValueError(
            f"{what}: found the key {unknown[0]!r}, expected one of {', '.join(sorted(known))}"
        )
