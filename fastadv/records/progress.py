"""What a run shows while it runs: a progress bar and `metrics.jsonl`."""

from __future__ import annotations

import sys

from tqdm import tqdm


class Bar:
    """A progress bar on a terminal; elsewhere a line at each evaluation."""

    def __init__(self, total: int, done: int, quiet: bool) -> None:
        self._quiet = quiet
        self._bar = tqdm(
            total=total, initial=done, unit="step", disable=True if quiet else None, leave=True
        )

    def advance(self) -> None:
        self._bar.update(1)

    def show(self, means: dict[str, float]) -> None:
        shown = {"L_T": f"{means['loss_task']:.3f}"}
        if "loss_discriminator" in means:
            shown["L_D"] = f"{means['loss_discriminator']:.3f}"
            shown["L_G"] = f"{means['loss_generator']:.3f}"
            shown["D"] = f"{means['discriminator_accuracy']:.0%}"
        shown["ex/s"] = f"{means['examples_per_second']:.0f}"
        shown["tok/s"] = f"{means['tokens_per_second']:.0f}"
        self._bar.set_postfix(shown, refresh=False)

    def say(self, line: str) -> None:
        if not self._quiet:
            tqdm.write(line, file=sys.stderr)

    def warn(self, line: str) -> None:
        """Shows a line, even when quiet."""
        notice(f"warning: {line}")

    def close(self) -> None:
        self._bar.close()


def notice(line: str) -> None:
    """Writes a line to standard error that no bar runs into."""
    tqdm.write(line, file=sys.stderr)
