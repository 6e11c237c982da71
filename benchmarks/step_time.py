"""Times one whole iteration of Algorithm 1 (T, D, G and their updates) against the baselines.

All systems run in the same process, in turn, over the same batches. Before anything is timed, each
is checked against the reference; no ratio is printed for one that fails, and the exit status is
then 1.

--json FILE: for one shape the file is its result, an object; for two shapes it is {"results": [one
such object per shape]}. A result has shape, device, step_seconds {system: median}, ratio_b0,
ratio_b1 and ratio_b2 (medians of the paired ratios baseline / library; null for a baseline left
out), floor_fraction (the library's), peak_memory_bytes {system: bytes}, versions, and by system:
runs, pairs, phases, operations (of one more step, under the profiler: {group: seconds and share};
step/operations.py), tflops, floor_fractions, compile. It also has tokens, floor, checks, lengths,
settings, machine and environment. Where a check failed, the result holds no times.
"""

from __future__ import annotations

import argparse
import gc
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from step.batches import (
    SHAPES,
    DrawnTexts,
    RealTexts,
    Shape,
    make_tokenizer,
    real_texts,
)
from step.check import Check, check, check_draws
from step.compiled import Compiled, compiler_missing
from step.flash import Flash
from step.floor import floor
from step.machine import (
    Memory,
    allocator_environment,
    copy_bandwidth,
    describe,
    matrix_rate,
    versions,
)
from step.models import MODEL_SIZES, make_encoder, make_setup
from step.report import check_rows, print_checks, print_head, print_times, time_rows
from step.systems import Library, Padded, Setup, System
from step.timing import interleaved

from fastadv.backends import BACKENDS

SYSTEMS: tuple[type[System], ...] = (Library, Padded, Compiled, Flash)
BASELINES = tuple(kind.name for kind in SYSTEMS[1:])
# B2 is fast by means of a GPU; on a CPU it runs only if it is asked for by name.
CPU_BASELINES = ("b0", "b1")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the benchmark; 0 if every system passed its check, 1 if not, 2 if it cannot run."""
    options = _options(argv)
    try:
        results = _measure(options)
    except (ValueError, RuntimeError, OSError) as error:
        print(f"step_time.py: {error}", file=sys.stderr)
        return 2
    if options.json:
        report = results[0] if len(results) == 1 else {"results": results}
        options.json.write_text(json.dumps(report, indent=1) + "\n")
    return 0 if all(c["passed"] for r in results for c in r["checks"].values()) else 1


def _options(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shape", choices=[*SHAPES, "both"], default="both")
    model = parser.add_mutually_exclusive_group()
    model.add_argument(
        "--model-size", choices=list(MODEL_SIZES), default="mbert", help="random weights"
    )
    model.add_argument("--model", type=Path, metavar="DIR", help="a Hugging Face model's folder")
    parser.add_argument("--batch-size", type=_positive, help="default 16, on a GPU 32")
    parser.add_argument("--steps", type=_positive, help="timed steps; default 3, on a GPU 20")
    parser.add_argument(
        "--baselines", type=_baselines, help="of b0,b1,b2; default b0,b1, on a GPU all three"
    )
    parser.add_argument("--precision", choices=["auto", "bf16", "fp32"], default="auto")
    parser.add_argument("--backend", choices=BACKENDS, help="of the library's operations")
    parser.add_argument(
        "--data",
        type=Path,
        metavar="DIR",
        help="take texts, and so their lengths, from debian_topics/LANG.train and "
        "uner/*/LANG_*-train.iob2 here, cut by the model folder's tokenizer or "
        "mbert_vocab/vocab.txt; default: lengths drawn from a distribution that is printed",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the results here too")
    parser.add_argument("--device", help="default: the GPU if there is one")
    parser.add_argument("--seed", type=int, default=0, help="of the batches")
    return parser.parse_args(argv)


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"found {text!r}, expected a whole number of at least 1")
    return int(text)


def _baselines(text: str) -> tuple[str, ...]:
    names = text.split(",")
    if not set(names) <= set(BASELINES):
        raise argparse.ArgumentTypeError(f"found {text!r}, expected some of b0,b1,b2")
    return tuple(name for name in BASELINES if name in names)


def _measure(options: argparse.Namespace) -> list[dict[str, Any]]:
    """The results of every shape."""
    device = torch.device(options.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    gpu = device.type == "cuda"
    options.batch_size = options.batch_size or (32 if gpu else 16)
    options.steps = options.steps or (20 if gpu else 3)
    options.baselines = options.baselines or (BASELINES if gpu else CPU_BASELINES)
    if "b1" in options.baselines and (missing := compiler_missing(device)):
        raise ValueError(f"{missing}; --baselines b0 leaves B1 out")
    if options.json and not options.json.parent.is_dir():
        raise ValueError(f"--json {options.json}: found no folder {options.json.parent}")
    tokenizer = make_tokenizer(options.model, options.data)
    encoder = make_encoder(options.model_size, options.model, len(tokenizer))
    results = []
    for name in SHAPES if options.shape == "both" else [options.shape]:
        shape = SHAPES[name]
        setup = make_setup(encoder, tokenizer, shape, device, options.precision, options.backend)
        results.append(_run(name, setup, _texts(options, shape, setup), options))
    return results


def _texts(options: argparse.Namespace, shape: Shape, setup: Setup) -> DrawnTexts | RealTexts:
    if options.data is None:
        return DrawnTexts(shape, setup.encoder.config.vocab_size, options.seed)
    return real_texts(options.data, shape, setup.tokenizer, options.seed)


def _head(
    name: str, setup: Setup, texts: DrawnTexts | RealTexts, options: argparse.Namespace
) -> dict[str, Any]:
    model = options.model.resolve().name if options.model else options.model_size
    return {
        "shape": name,
        "device": setup.device.type,
        "machine": describe(setup.device),
        "versions": versions(setup.device),
        "environment": allocator_environment(),
        "settings": {
            "model": model,
            "batch_size": options.batch_size,
            "steps": options.steps,
            "precision": setup.config.precision,
            "backend": setup.config.backend,
            "seed": options.seed,
        },
        "lengths": texts.source,
        "memory_method": Memory.METHODS.get(setup.device.type),
    }


def _run(
    name: str, setup: Setup, texts: DrawnTexts | RealTexts, options: argparse.Namespace
) -> dict[str, Any]:
    """The checks of one shape and, if all pass, the times."""
    result = _head(name, setup, texts, options)
    print_head(result)
    kinds = [kind for kind in SYSTEMS if kind.name in (Library.name, *options.baselines)]
    checks: list[Check] = []
    small = check_draws(setup)
    for kind in kinds:
        if kind is not Padded:
            checks.append(check(kind, setup, small))
            _free(setup.device)
    result["checks"] = check_rows(checks)
    print_checks(result)
    if not all(c.passed for c in checks):
        return result
    draws = [texts.step(options.batch_size) for _ in range(options.steps + 1)]
    dtype = torch.bfloat16 if setup.config.precision == "bf16" else torch.float32
    rates = matrix_rate(setup.device, dtype), copy_bandwidth(setup.device)
    least = floor(setup, draws[1:], *rates)
    measured = interleaved(kinds, setup, draws)
    _free(setup.device)
    for kind in (Library, Flash):
        if kind.name in measured and measured[kind.name].peak_memory_bytes is not None:
            # The memory that graphs hold was allocated while they were captured, not in a step.
            measured[kind.name].peak_memory_bytes += kind.graph_bytes
    result |= time_rows(measured, least, rates, draws[1:], BASELINES)
    print_times(result)
    return result


def _free(device: torch.device) -> None:
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


if __name__ == "__main__":
    sys.exit(main())
