"""What step_time.py prints."""

from __future__ import annotations

from typing import Any


def print_head(report: dict[str, Any]) -> None:
    """The machine, its versions, the settings, and what the machine can do."""
    for name, value in (report["machine"] | report["settings"]).items():
        print(f"{name:<14}{value}")
    print(f"{'products':<14}{report['matrix_tflops']:.2f} TFLOP/s measured")
    print(
        f"{'copies':<14}{report['copy_gb_per_s']:.0f} GB/s measured, read and written", flush=True
    )


def print_checks(name: str, checks: list[dict[str, Any]]) -> None:
    """Name of a shape, and how far every system is from the reference there."""
    print(f"\n{name}")
    for found in checks:
        low = found["low_precision"]
        print(
            f"  {found['system']} {'equals' if found['passed'] else 'DIFFERS FROM'} the reference: "
            f"losses within {found['losses']:.1e}, gradients {found['gradients']:.1e}, "
            f"a step's movement {found['weights']:.1e}"
            + (f"; in bf16 {low:.2f} of the reference's own error" if low is not None else ""),
            flush=True,
        )


def print_times(results: dict[str, Any]) -> None:
    """What was measured of one shape, if all its checks passed."""
    if "systems" not in results:
        print("  not timed: what is wrong has no speed", flush=True)
        return
    print(
        f"  tokens a step: {results['useful_tokens']:.0f} useful, {results['padded_tokens']:.0f} "
        f"padded; {results['tflop']:.3g} TFLOP; floor {results['floor_seconds']:.4g} s, "
        f"{results['floor_matrix_seconds']:.4g} s of it products"
    )
    print(f"  {'':<10}{'seconds':>9}{'TFLOP/s':>9}{'of floor':>10}{'peak GB':>9}")
    for system, row in results["systems"].items():
        print(
            f"  {system:<10}{row['seconds']:>9.4g}{row['useful_tflops']:>9.3g}"
            f"{row['fraction_of_floor']:>10.1%}{row['peak_memory_gb']:>9.3g}"
        )
    for baseline, ratio in results["ratios"].items():
        low, high = min(ratio["pairs"]), max(ratio["pairs"])
        print(
            f"  ratio {baseline} / library: {ratio['median']:.2f} "
            f"({low:.2f} to {high:.2f} over {len(ratio['pairs'])} pairs)",
            flush=True,
        )
