"""best/, the model of the step that is chosen so far."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

from fastadv.run.files import replace_folder
from fastadv.run.folder import BEST
from fastadv.selection.step_choice import StepChoice

CANDIDATES = ".candidates"


_GONE = ".gone"


class BestFolder:
    """best/ of a run: the model of the step that is chosen so far.

    Models of other candidates are kept in .candidates/ until the run ends.

    Args:
        folder: The folder of the run.
        save: Writes the model as it is now into a folder.
    """

    def __init__(self, folder: Path, save: Callable[[Path], None]) -> None:
        self._folder, self._save = folder, save

    def update(self, choice: StepChoice, step: int) -> None:
        """After an evaluation at `step` was added to the choice.

        Raises:
            OSError: A folder cannot be written; what was there before is untouched.
        """
        best, candidates = choice.best(), choice.candidates()
        if best is None:
            return
        if len(choice.parts) == 1:
            if best[0] == step:
                replace_folder(self._folder / BEST, self._save)
            return
        if step in candidates:
            replace_folder(self._kept(step), self._save)
        replace_folder(self._folder / BEST, lambda folder: _link(self._kept(best[0]), folder))
        kept = {_GONE, *map(str, candidates)}
        for path in [*(self._folder / CANDIDATES).iterdir()]:
            if path.name not in kept:
                _remove(path)

    def resume(self, choice: StepChoice) -> None:
        """Before a run is resumed, with the evaluations up to its checkpoint in the choice.

        Raises:
            OSError: See `update`.
        """
        best = choice.best()
        if len(choice.parts) == 1 or best is None:
            return
        if not (self._folder / CANDIDATES).exists() and (self._folder / BEST).exists():
            # It had ended, and best/ is its last word.
            replace_folder(self._kept(best[0]), lambda folder: _link(self._folder / BEST, folder))
        for step in choice.candidates():
            if not self._kept(step).exists():
                choice.lose(step)

    def finish(self) -> None:
        """Only best/ remains."""
        if (self._folder / CANDIDATES).exists():
            _remove(self._folder / CANDIDATES)

    def _kept(self, step: int) -> Path:
        return self._folder / CANDIDATES / str(step)


def _remove(path: Path) -> None:
    """Whenever it is stopped, the folder is whole or there is none of that name."""
    gone = path.with_name(_GONE)
    shutil.rmtree(gone, ignore_errors=True)
    path.rename(gone)
    shutil.rmtree(gone)


def _link(source: Path, target: Path) -> None:
    """A second name for every file, which takes no room; a copy where there are no hard links."""
    for path in source.iterdir():
        try:
            os.link(path, target / path.name)
        except OSError:
            shutil.copy2(path, target / path.name)
