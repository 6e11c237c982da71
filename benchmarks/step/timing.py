"""Runs the systems of step_time.py in turn: seconds of steps and of their parts, and memory."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from step.batches import StepDraws
from step.compiled import graphs_compiled
from step.machine import Memory, seconds
from step.operations import operations
from step.systems import PIECES, Setup, System

Result = TypeVar("Result")


@dataclass
class Measured:
    """What was measured for one system.

    Attributes:
        seconds: The seconds of every timed step.
        pieces: Seconds of every part of a step, by its name in `PIECES`, from separate rounds.
        operations: Seconds of one more step, under the profiler, by group of operations.
        peak_memory_bytes: What the system holds between steps, plus what a step takes temporarily;
            None where it cannot be measured.
        warm_up_seconds: The time of what is done once for all steps: compiling.
        graphs: The number of graphs compiled during the warm-up.
        repeated: Steps that were timed again because something was compiled in them.
    """

    seconds: list[float] = field(default_factory=list)
    pieces: dict[str, list[float]] = field(default_factory=lambda: {name: [] for name in PIECES})
    operations: dict[str, float] = field(default_factory=dict)
    peak_memory_bytes: int | None = None
    warm_up_seconds: float = 0.0
    graphs: int = 0
    repeated: int = 0


def interleaved(
    kinds: Sequence[type[System]], setup: Setup, draws: Sequence[StepDraws]
) -> dict[str, Measured]:
    """Measures every system over the same draws.

    The systems take turns step by step, and which one goes first changes from step to step. The
    first draw warms up, creates the optimisers' states and is used to measure memory. All other
    draws are timed as whole steps. Half of them (at least one) are then timed once more in parts,
    so that waiting for the device between parts slows down no step. The second draw runs once more
    under the profiler, whose own time enters no ratio.
    """
    found = {kind.name: Measured() for kind in kinds}
    systems = [_start(kind, setup, draws[0], found[kind.name]) for kind in kinds]
    timed = draws[1:]
    for number, draw in enumerate(timed):
        for system in _rotated(systems, number):
            found[system.name].seconds.append(_time_step(system, setup, draw, found[system.name]))
    for number, draw in enumerate(timed[: (len(timed) + 1) // 2]):
        for system in _rotated(systems, number):
            _time_pieces(system, setup, draw, found[system.name])
    while systems:
        # Each system is removed from memory: the profiler needs room.
        system = systems.pop(0)
        found[system.name].operations = _profile(system, setup, timed[0], found[system.name])
        del system
        gc.collect()
    return found


def _start(kind: type[System], setup: Setup, draw: StepDraws, found: Measured) -> System:
    """The system after its first steps. Memory left behind by compiling is not counted: what the
    system adds is measured before compiling and after it, never across.
    """
    memory = Memory(setup.device)
    before = memory.held()
    system = kind(setup)
    batches = system.prepare(draw)
    built = memory.held() - before
    start, graphs = time.perf_counter(), graphs_compiled()
    system.warm_up(batches)
    found.warm_up_seconds = time.perf_counter() - start
    found.graphs = graphs_compiled() - graphs
    before = memory.held()
    system.step(batches)
    system.clear()
    states = memory.held() - before
    extra = memory.extra(lambda: system.step(batches))
    system.clear()
    found.peak_memory_bytes = built + states + extra if memory.known else None
    return system


def _time_step(system: System, setup: Setup, draw: StepDraws, found: Measured) -> float:
    batches = system.prepare(draw)

    def once() -> float:
        taken = seconds(lambda: system.step(batches), setup.device)
        system.clear()
        return taken

    return _without_compiling(once, found)


def _time_pieces(system: System, setup: Setup, draw: StepDraws, found: Measured) -> None:
    batches = system.prepare(draw)

    def once() -> list[tuple[str, float]]:
        pieces = system.pieces(batches)
        taken = [(name, seconds(work, setup.device)) for name, work in pieces]
        system.clear()
        return taken

    for name, taken in _without_compiling(once, found):
        found.pieces[name].append(taken)


def _profile(system: System, setup: Setup, draw: StepDraws, found: Measured) -> dict[str, float]:
    batches = system.prepare(draw)

    def once() -> dict[str, float]:
        taken = operations(lambda: system.step(batches), setup.device)
        system.clear()
        return taken

    return _without_compiling(once, found)


def _without_compiling(once: Callable[[], Result], found: Measured) -> Result:
    """`once()`, repeated as long as something was compiled in it: a new kind of shape."""
    while True:
        graphs = graphs_compiled()
        result = once()
        if graphs_compiled() == graphs:
            return result
        found.repeated += 1


def _rotated(systems: list[System], number: int) -> list[System]:
    first = number % len(systems)
    return systems[first:] + systems[:first]
