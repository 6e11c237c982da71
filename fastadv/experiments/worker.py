"""`python -m fastadv.experiments.worker FOLDER RUN`: one run of an experiment, in its own process.

It ends when its standard input does, so that no worker is left in the folder when the process that
started it is killed.
"""

from __future__ import annotations

import os
import sys
import threading
from pathlib import Path


def _end_with_input() -> None:
    while os.read(0, 1):
        pass
    os._exit(1)


def main(folder: str, name: str) -> int:
    """Performs the run; returns 0 when it is finished, 143 after SIGTERM."""
    threading.Thread(target=_end_with_input, daemon=True).start()
    from fastadv.experiments.experiment import Experiment
    from fastadv.experiments.run import perform
    from fastadv.run.stopping import Stopped

    experiment = Experiment.of_folder(Path(folder))
    run = next(run for run in experiment.plan.runs() if run.name == name)
    try:
        perform(experiment.plan, run, experiment.run_folder(run))
    except Stopped as stop:
        print(stop, file=sys.stderr)
        return 128 + stop.signal
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
