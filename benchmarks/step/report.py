"""What step_time.py reports for a shape: rows of its JSON, and what it prints of them."""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from step.batches import StepDraws
from step.check import Check
from step.floor import Floor
from step.operations import OVERHEAD
from step.systems import PIECES, Library
from step.timing import Measured


def check_rows(checks: Sequence[Check]) -> dict[str, dict[str, Any]]:
    """The results of the checks, by system."""
    return {c.system: dataclasses.asdict(c) | {"passed": c.passed} for c in checks}


def time_rows(
    measured: Mapping[str, Measured],
    least: Floor,
    rates: tuple[float, float],
    draws: Sequence[StepDraws],
    baselines: Sequence[str],
) -> dict[str, Any]:
    """Everything measured for one shape, in the form that the module step_time describes.

    Args:
        measured: The measurements by system, including the library.
        least: The step's floor.
        rates: The operations and bytes per second that the floor is based on.
        draws: The draws that were timed.
        baselines: All existing baselines, including those that were left out.
    """
    medians = {name: statistics.median(m.seconds) for name, m in measured.items()}
    fractions = {name: least.seconds / s for name, s in medians.items()}
    own = measured[Library.name].seconds
    pairs = {
        name: [theirs / ours for theirs, ours in zip(measured[name].seconds, own, strict=True)]
        for name in baselines
        if name in measured
    }
    return {
        "step_seconds": medians,
        **{
            f"ratio_{name}": statistics.median(pairs[name]) if name in pairs else None
            for name in baselines
        },
        "floor_fraction": fractions[Library.name],
        "peak_memory_bytes": {name: m.peak_memory_bytes for name, m in measured.items()},
        "runs": {name: m.seconds for name, m in measured.items()},
        "pairs": pairs,
        "phases": {name: _phases(m) for name, m in measured.items()},
        "operations": {name: _shares(m.operations) for name, m in measured.items()},
        "tflops": {name: least.flops / s / 1e12 for name, s in medians.items()},
        "floor_fractions": fractions,
        "compile": {
            name: {
                "seconds": m.warm_up_seconds,
                "graphs": m.graphs,
                "repeated_steps": m.repeated,
            }
            for name, m in measured.items()
            if m.graphs
        },
        "tokens": {
            "useful": statistics.fmean(d.useful_tokens for d in draws),
            "padded": statistics.fmean(d.padded_tokens for d in draws),
            "sequences": statistics.fmean(d.sequences for d in draws),
        },
        "floor": {
            "seconds": least.seconds,
            "matrix_seconds": least.matrix_seconds,
            "copy_seconds": least.copy_seconds,
            "tflop": least.flops / 1e12,
            "optimizer_gb": least.optimizer_bytes / 1e9,
            "matrix_tflops": rates[0] / 1e12,
            "copy_gb_per_s": rates[1] / 1e9,
        },
    }


def _phases(measured: Measured) -> dict[str, dict[str, float]]:
    """Median seconds of every part, and its share of their sum."""
    return _shares({name: statistics.median(times) for name, times in measured.pieces.items()})


def _shares(seconds: Mapping[str, float]) -> dict[str, dict[str, float]]:
    whole = sum(seconds.values())
    return {name: {"seconds": s, "share": s / whole} for name, s in seconds.items()}


def print_head(result: Mapping[str, Any]) -> None:
    """The shape, the machine, versions, settings, and where the lengths come from."""
    print(f"\n{result['shape']}")
    for name in ("machine", "versions", "environment", "settings"):
        facts = ", ".join(f"{k} {v}" for k, v in result[name].items() if v is not None)
        if facts:
            print(f"  {name:<13}{facts}")
    print(f"  {'lengths':<13}{result['lengths']}", flush=True)


def print_checks(result: Mapping[str, Any]) -> None:
    """How far every system is from the reference."""
    for name, found in result["checks"].items():
        low = found["low_precision"]
        print(
            f"  {name} {'equals' if found['passed'] else 'DIFFERS FROM'} the reference: "
            f"losses within {found['losses']:.1e}, gradients {found['gradients']:.1e}, "
            f"a step's movement {found['weights']:.1e}"
            + (f"; in bf16 {low:.2f} of the reference's own error" if low is not None else ""),
            flush=True,
        )
    if not all(found["passed"] for found in result["checks"].values()):
        print("  not timed: what is wrong has no speed", flush=True)


def print_times(result: Mapping[str, Any]) -> None:
    """What was measured for one shape."""
    tokens, least = result["tokens"], result["floor"]
    print(
        f"  a step: {tokens['useful']:.0f} useful tokens ({tokens['padded']:.0f} padded), "
        f"mean length {tokens['useful'] / tokens['sequences']:.0f}; {least['tflop']:.3g} TFLOP\n"
        f"  floor {least['seconds']:.4g} s: products {least['matrix_seconds']:.4g} s at "
        f"{least['matrix_tflops']:.3g} TFLOP/s, optimisers {least['copy_seconds']:.4g} s at "
        f"{least['copy_gb_per_s']:.3g} GB/s, both measured"
    )
    print(
        f"  {'':<9}{'seconds':>9}{'least':>9}{'most':>9}"
        f"{'TFLOP/s':>9}{'of floor':>10}{'peak GB':>9}"
    )
    for name, middle in result["step_seconds"].items():
        runs, peak = result["runs"][name], result["peak_memory_bytes"][name]
        print(
            f"  {name:<9}{middle:>9.4g}{min(runs):>9.4g}{max(runs):>9.4g}"
            f"{result['tflops'][name]:>9.3g}{result['floor_fractions'][name]:>10.1%}"
            + (f"{peak / 1e9:>9.3g}" if peak is not None else f"{'?':>9}")
        )
    for name, pairs in result["pairs"].items():
        print(
            f"  ratio {name} / library: {result[f'ratio_{name}']:.2f} "
            f"({min(pairs):.2f} to {max(pairs):.2f} over {len(pairs)} pairs)"
        )
    _print_phases(result)
    _print_operations(result)
    for name, row in result["compile"].items():
        print(
            f"  {name} compiled {row['graphs']} graphs in {row['seconds']:.0f} s before anything "
            f"was timed; {row['repeated_steps']} steps were timed again since they compiled more"
        )
    print(end="", flush=True)


def _print_phases(result: Mapping[str, Any]) -> None:
    print("  in parts, timed apart: seconds and share")
    print(f"  {'':<22}" + "".join(f"{name:>18}" for name in result["phases"]))
    for piece in PIECES:
        cells = (row[piece] for row in result["phases"].values())
        columns = "".join(f"{cell['seconds']:>11.4g}{cell['share']:>7.1%}" for cell in cells)
        print(f"  {piece.replace('_', ' '):<22}{columns}")


def _print_operations(result: Mapping[str, Any]) -> None:
    """The groups that are largest in any system first; a dash where a system has nothing."""
    found = result["operations"]
    largest: dict[str, float] = {}
    for rows in found.values():
        for group, cell in rows.items():
            largest[group] = max(largest.get(group, 0.0), cell["seconds"])
    ordered = sorted(largest, key=lambda group: (group == OVERHEAD, -largest[group]))
    width = max(map(len, ordered)) + 2
    print("  by operation, in one more step under the profiler: ms and share")
    print(f"  {'':<{width}}" + "".join(f"{name:>18}" for name in found))
    for group in ordered:
        columns = ""
        for rows in found.values():
            cell = rows.get(group)
            columns += (
                f"{cell['seconds'] * 1e3:>11.4g}{cell['share']:>7.1%}" if cell else f"{'-':>18}"
            )
        print(f"  {group:<{width}}{columns}")
