"""Data sets of the Hugging Face hub, and `datasets.Dataset` objects in memory."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Mapping
from typing import Any

from fastadv.data.fields import Columns, MissingField, column_of, listed

_NAME = re.compile(r"hf:([^/:]+/[^/:]+)(?:/([^/:]+))?(?::(.+))?")
_FORM = "hf:OWNER/NAME[/CONFIG][:SPLIT]"


def is_dataset(data: object) -> bool:
    """Whether this is a `datasets.Dataset`, or one that is streamed."""
    datasets = sys.modules.get("datasets")
    if datasets is None:
        return False
    return isinstance(data, datasets.Dataset | datasets.IterableDataset)


def splits_of(data: object) -> list[str] | None:
    """The names of the splits, if this is several data sets by split."""
    datasets = sys.modules.get("datasets")
    if datasets is None:
        return None
    kinds = datasets.DatasetDict | datasets.IterableDatasetDict
    return list(data) if isinstance(data, kinds) else None


def load(name: str) -> Any:
    """The data set that "hf:OWNER/NAME[/CONFIG][:SPLIT]" names, from the hub or its local cache.

    Without a split it must have only one.

    Raises:
        ValueError: The name is not of that form, or the hub has no such data set or split.
        OSError: The hub cannot be reached, and the data set is not in the cache.
        ImportError: The package datasets is not installed.
    """
    parts = _NAME.fullmatch(name)
    if parts is None:
        raise ValueError(f"{name}: found a name of another form, expected {_FORM}")
    try:
        import datasets
    except ImportError:
        raise ImportError(
            f"{name}: reading from the hub needs the package datasets: pip install 'fastadv[hub]'"
        ) from None
    repository, config, split = parts.groups()
    bars = sys.stderr.isatty() or datasets.are_progress_bars_disabled()
    if not bars:
        datasets.disable_progress_bars()
    try:
        data = datasets.load_dataset(repository, config, split=split)
    except ConnectionError as error:
        raise OSError(
            f"{name}: found no way to the hub ({_one_line(error)}), expected a network, or the "
            "data set in the local cache"
        ) from None
    except (ValueError, OSError, RuntimeError) as error:
        raise ValueError(f"{name}: found {_one_line(error)}, expected {_FORM}") from None
    finally:
        if not bars:
            datasets.enable_progress_bars()
    return data if split else _only_split(name, data)


def rows(
    data: Any, fields: tuple[str, ...], columns: Columns, labelled: bool
) -> Iterator[dict[str, Any]]:
    """The rows of a data set: the columns of these fields, their numbers turned into names.

    Numbers that the data set itself names (its feature is a ClassLabel or a list of them) become
    names; -1, which stands for no label, becomes None. Other values stay as they are.

    Raises:
        MissingField: A field has no column; unless `labelled`, none of them has.
    """
    names = data.column_names
    if names is None:
        names = list(next(iter(data), {}))
    found = {field: column_of(field, names, columns) for field in fields}
    missing = [field for field, name in found.items() if name is None]
    if labelled and missing:
        raise MissingField(names, missing[0])
    if len(missing) == len(fields):
        raise MissingField(names, *fields)
    chosen = [name for name in names if name in found.values()]
    data = data.select_columns(chosen).with_format(None)
    features = data.features or {}
    labels = {name: _label_names(features.get(name)) for name in chosen}
    for row in data:
        yield {name: _named(value, labels[name]) for name, value in row.items()}


def _label_names(feature: Any) -> list[str] | None:
    return getattr(getattr(feature, "feature", feature), "names", None)


def _named(value: Any, names: list[str] | None) -> Any:
    if names is None or value is None:
        return value
    if isinstance(value, list):
        return [_named(item, names) for item in value]
    if not 0 <= value < len(names):
        return None if value == -1 else value
    return names[value]


def _only_split(name: str, data: Mapping[str, Any]) -> Any:
    if len(data) == 1:
        return next(iter(data.values()))
    raise ValueError(
        f"{name}: found the splits {listed(list(data))}, expected one of them, such as "
        f"{name}:{next(iter(data))}"
    )


def _one_line(error: Exception) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 300 else text[:300] + "…"
