"""`python -m fastadv.pretraining FOLDER`: runs or resumes a prepared run, in pieces if need be.

It needs the core packages alone, so that a run prepared on one machine (`fastadv pretrain
--prepare_only`) can be carried to another that has a GPU.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from fastadv.pretraining.run import PretrainingRun


def main() -> int:
    """Returns 0 when the run is done, 3 when time ran out before, 2 with one line for a mistake."""
    parser = argparse.ArgumentParser(prog="python -m fastadv.pretraining", description=__doc__)
    parser.add_argument("folder", type=Path, help="what fastadv pretrain --prepare_only made")
    parser.add_argument("--seconds", type=float, help="stop with a checkpoint after so long")
    parser.add_argument("--device", help="cpu or cuda; by default the GPU if there is one")
    parser.add_argument("--quiet", action="store_true", help="no progress")
    given = parser.parse_args()
    try:
        run = PretrainingRun(given.folder, given.quiet, given.device)
        done = run.go(given.seconds)
    except (ValueError, OSError, FloatingPointError) as error:
        print(f"fastadv.pretraining: {error}", file=sys.stderr)
        return 2
    step, steps = run.trainer.step_count, run.config.steps
    print(
        f"{given.folder}: step {step} of {steps}{'' if done else ', the same command resumes it'}"
    )
    return 0 if done else 3


if __name__ == "__main__":
    sys.exit(main())
