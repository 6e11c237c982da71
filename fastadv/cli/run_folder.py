"""A run's folder as the command line sees it: whose it is, and the options it was made with."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import yaml
from jsonargparse import Namespace

BASELINE = "baseline"
OPTIONS = "run.yaml"
_HEADER = "# Options of a fastadv run; to start another with them: --options "
# Not kept: where options came from, whether this was the first start, and how much was printed.
_PASSING = ("options", "resume", "quiet", "print_config", "seconds", "prepare_only")


def refuse_other_run(output: Path, resume: bool, baseline: bool) -> None:
    """Refuses a folder that a new run would overwrite, before anything is loaded.

    Raises:
        ValueError: The folder holds a run and `resume` is False, or is no folder.
    """
    from fastadv.run.folder import BEST, CHECKPOINT, LAST, MEAN, METRICS

    for folder in (*reversed(output.parents), output):
        if folder.exists() and not folder.is_dir():
            raise ValueError(f"{folder}: found a file, expected a folder for the run")
    for folder in (output, output / BASELINE) if baseline else (output,):
        for name in (CHECKPOINT, METRICS, BEST, LAST, MEAN):
            if not resume and (folder / name).exists():
                raise ValueError(
                    f"{folder}: found {name} of another run, expected a new folder, or --resume "
                    "to continue it"
                )
    written = output / OPTIONS
    if not resume and written.exists() and not _is_ours(written):
        raise ValueError(f"{written}: found a file that fastadv did not write, expected none")


def has_checkpoint(output: Path) -> bool:
    """Whether a run in the folder, or its twin, can be resumed."""
    # By a pattern: the module that defines the name imports torch, and a signal may have
    # interrupted just that import.
    folders = (output, output / BASELINE)
    return any(path for folder in folders for path in folder.glob("checkpoint*.safetensors"))


def has_begun(output: Path) -> bool:
    """Whether a run in the folder got as far as a record or a checkpoint."""
    metrics = output / "metrics.jsonl"
    return has_checkpoint(output) or (metrics.exists() and metrics.stat().st_size > 0)


@contextmanager
def recorded(output: Path, options: Namespace) -> Iterator[None]:
    """Leaves run.yaml in the folder of a run that began, and nothing where none did.

    A resumed run keeps the file it has until it is known that the new options fit the run.
    """
    text = _as_yaml(output, options)
    path = output / OPTIONS
    begun = has_begun(output)
    if not begun:
        made = [folder for folder in (output, *output.parents) if not folder.exists()]
        output.mkdir(parents=True, exist_ok=True)
        _write(path, text)
    try:
        yield
    except BaseException:
        if not has_begun(output):
            for file in (path, output / "metrics.jsonl"):
                file.unlink(missing_ok=True)
            with suppress(OSError):
                for folder in made:
                    folder.rmdir()
        raise
    if begun:
        _write(path, text)


def _as_yaml(output: Path, options: Namespace) -> str:
    chosen = {n: value for n, value in options.as_dict().items() if n not in _PASSING}
    body = yaml.safe_dump(chosen, sort_keys=False, allow_unicode=True)
    return f"{_HEADER}{output / OPTIONS} --output NEW\n{body}"


def _is_ours(path: Path) -> bool:
    with path.open("rb") as file:
        return file.readline().startswith(_HEADER.encode())


def _write(path: Path, text: str) -> None:
    if path.exists() and path.read_bytes() == text.encode():
        return
    temporary = path.with_name(f".{path.name}.part")
    try:
        temporary.write_text(text, "utf-8")
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
