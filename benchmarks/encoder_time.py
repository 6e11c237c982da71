"""Times the encoder's forward pass alone (evaluation, no gradients) against transformers'.

All sequences have one length, so that there is no padding: what is left is how fast the same
arithmetic is done. Every way multiplies matrices in bfloat16: ours; transformers under autocast
over float32 weights, as in training; transformers with its weights cast to bfloat16; with
--compile, these two under torch.compile as well. Results are first compared with transformers in
float32, and no ratio is printed for a wrong result.

This is a script, not a pytest benchmark, because ratios are medians over pairs: the ways must take
turns and share one model.

python benchmarks/encoder_time.py --model-size mbert --lengths 128 --batch-sizes 1,8,64
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import statistics
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from step.batches import forward_flops
from step.compiled import compile_regions, compiler_missing, graphs_compiled
from step.machine import describe, matrix_rate, seconds, versions
from step.models import MODEL_SIZES, make_encoder
from torch import Tensor
from transformers import PreTrainedModel

from fastadv.backends import BACKENDS
from fastadv.batches.packing import pack
from fastadv.batches.tokenized import TokenSequence
from fastadv.nn.packed_encoder import PackedBert

OURS, AUTOCAST, CAST = "ours", "autocast", "bfloat16"
# Ours rounds where transformers under autocast does. Sums of equally many roundings may differ by a
# factor of two.
OWN_LIMIT = 2.0
# The limit for transformers' error: bfloat16 rounds by at most 2^-9, and a model cast to it rounds
# at least eight results in every layer, whose errors add up like random steps. A wrong result has
# an error of 1.
ROUNDING, ROUNDINGS = 2.0**-9, 8

Work = Callable[[], Tensor]
# From (B, L) ids to the work that gives (B * L, H) hidden states.
Way = Callable[[Tensor], Work]


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the benchmark; 0 if every result was right, 1 if not, 2 if it cannot run."""
    options = _options(argv)
    device = torch.device(options.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    try:
        if options.compile and (missing := compiler_missing(device)):
            raise ValueError(missing)
        report = _measure(options, device)
    except (ValueError, RuntimeError, OSError) as error:
        print(f"encoder_time.py: {error}", file=sys.stderr)
        return 2
    if options.json:
        options.json.write_text(json.dumps(report, indent=1) + "\n")
    return 0 if all(row["passed"] for row in report["rows"]) else 1


def _options(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    model = parser.add_mutually_exclusive_group()
    model.add_argument(
        "--model-size", choices=list(MODEL_SIZES), default="mbert", help="random weights"
    )
    model.add_argument("--model", type=Path, metavar="DIR", help="a Hugging Face model's folder")
    parser.add_argument("--lengths", type=_numbers, default=(20, 64, 128, 256), metavar="N,N,...")
    parser.add_argument(
        "--batch-sizes", type=_numbers, default=(1, 2, 4, 8, 16, 32, 64), metavar="N,N,..."
    )
    parser.add_argument(
        "--max-tokens", type=int, default=8192, help="batches of more are left out; default 8192"
    )
    parser.add_argument("--rounds", type=int, help="default 7, on a GPU 30")
    parser.add_argument("--compile", action="store_true", help="torch.compile transformers too")
    parser.add_argument("--backend", choices=BACKENDS, help="of the library's operations")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the results here too")
    parser.add_argument("--device", help="default: the GPU if there is one")
    parser.add_argument("--seed", type=int, default=0, help="of the word pieces")
    return parser.parse_args(argv)


def _numbers(text: str) -> tuple[int, ...]:
    parts = text.split(",")
    if not all(part.isdecimal() and int(part) > 0 for part in parts):
        raise argparse.ArgumentTypeError(f"found {text!r}, expected whole numbers such as 1,8,64")
    return tuple(int(part) for part in parts)


def _measure(options: argparse.Namespace, device: torch.device) -> dict[str, Any]:
    if options.json and not options.json.parent.is_dir():
        raise ValueError(f"--json {options.json}: found no folder {options.json.parent}")
    exact = make_encoder(options.model_size, options.model, 1).to(device).eval()
    exact.pooler = None  # type: ignore[assignment]
    rounds = options.rounds or (30 if device.type == "cuda" else 7)
    rate = matrix_rate(device, torch.bfloat16)
    report = {
        "device": device.type,
        "machine": describe(device),
        "versions": versions(device),
        "settings": {
            "model": options.model.resolve().name if options.model else options.model_size,
            "attention": exact.config._attn_implementation,
            "backend": options.backend,
            "rounds": rounds,
            "matrix_tflops": rate / 1e12,
        },
        "rows": [],
    }
    found = ways(exact, device, options.backend, options.compile)
    _print_head(report, found)
    random = np.random.default_rng(options.seed)
    for length in options.lengths:
        for batch_size in options.batch_sizes:
            if length * batch_size <= options.max_tokens:
                shape = (batch_size, length)
                drawn = random.integers(1, exact.config.vocab_size, shape)
                row = compare(exact, found, torch.from_numpy(drawn).to(device), rounds)
                report["rows"].append(row)
                _print_row(row, rate)
    return report


def ways(
    exact: PreTrainedModel, device: torch.device, backend: str | None, compiled: bool
) -> dict[str, Way]:
    """Ours and transformers', over the weights of `exact`; only the cast model is a second copy."""
    encoder = PackedBert(exact, torch.bfloat16, backend).eval()

    def ours(ids: Tensor) -> Work:
        rows = ids.cpu().numpy().astype(np.int32)
        batch = pack([[TokenSequence(row)] for row in rows]).to(device)
        return lambda: encoder(batch)

    cast = copy.deepcopy(exact).to(torch.bfloat16)
    found = {OURS: ours, AUTOCAST: transformers(exact, True), CAST: transformers(cast, False)}
    if compiled:
        found[f"{AUTOCAST} compiled"] = transformers(_compiled(exact), True)
        found[f"{CAST} compiled"] = transformers(_compiled(cast), False)
    return found


def transformers(model: PreTrainedModel, autocast: bool) -> Way:
    """Runs without a mask, which lets transformers' attention take the fastest path."""

    def way(ids: Tensor) -> Work:
        def work() -> Tensor:
            with torch.autocast(ids.device.type, torch.bfloat16, enabled=autocast):
                return model(input_ids=ids).last_hidden_state.flatten(0, 1)

        return work

    return way


def _compiled(model: PreTrainedModel) -> PreTrainedModel:
    """A compiled model with the same weights, which are not copied."""
    weights = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
    twin = copy.deepcopy(model, weights)
    compile_regions(twin)
    return twin


@torch.no_grad()
def compare(
    exact: PreTrainedModel, found: Mapping[str, Way], ids: Tensor, rounds: int
) -> dict[str, Any]:
    """The errors of all ways over one batch and, if none is too large, their times.

    Returns:
        batch_size, length, tokens, and by way: errors (relative to the float32 result, in the
        Euclidean norm); passed; then seconds (medians), runs, ratios for the ways that are not ours
        (medians of pairs, theirs / ours) and tflops for ours.
    """
    wanted = transformers(exact, False)(ids)()
    works = {name: way(ids) for name, way in found.items()}
    errors = {name: _error(work(), wanted) for name, work in works.items()}
    others = ROUNDING * math.sqrt(ROUNDINGS * exact.config.num_hidden_layers)
    limits = dict.fromkeys(errors, others) | {OURS: OWN_LIMIT * errors[AUTOCAST]}
    row: dict[str, Any] = {
        "batch_size": ids.shape[0],
        "length": ids.shape[1],
        "tokens": ids.numel(),
        "errors": errors,
        # Not "larger than": that is false for NaN.
        "passed": all(errors[name] <= limits[name] for name in errors),
    }
    if not row["passed"]:
        return row
    runs = interleaved(works, ids.device, rounds)
    medians = {name: statistics.median(times) for name, times in runs.items()}
    pairs = {
        name: [theirs / own for theirs, own in zip(times, runs[OURS], strict=True)]
        for name, times in runs.items()
        if name != OURS
    }
    return row | {
        "seconds": medians,
        "ratios": {name: statistics.median(values) for name, values in pairs.items()},
        "tflops": forward_flops(exact.config, [ids.shape[1]] * len(ids)) / medians[OURS] / 1e12,
        "runs": runs,
    }


def _error(result: Tensor, wanted: Tensor) -> float:
    return float((result.float() - wanted).norm() / wanted.norm())


def interleaved(
    works: Mapping[str, Work], device: torch.device, rounds: int
) -> dict[str, list[float]]:
    """Seconds of each, in turn; which one goes first changes from round to round."""
    names = list(works)
    runs: dict[str, list[float]] = {name: [] for name in names}
    for number in range(-1, rounds):
        first = number % len(names)
        for name in names[first:] + names[:first]:
            graphs = graphs_compiled()
            taken = seconds(works[name], device)
            while graphs_compiled() > graphs:
                graphs = graphs_compiled()
                taken = seconds(works[name], device)
            # The round before the first warms up the caches.
            if number >= 0:
                runs[name].append(taken)
    return runs


def _print_head(report: Mapping[str, Any], names: Sequence[str] | Mapping[str, Way]) -> None:
    for part in ("machine", "versions", "settings"):
        facts = (f"{k} {v:.3g}" if isinstance(v, float) else f"{k} {v}"
                 for k, v in report[part].items() if v is not None)  # fmt: skip
        print(f"{part:<10}{', '.join(facts)}")
    others = "".join(f"{name:>20}{'ratio':>7}" for name in names if name != OURS)
    print(f"\n{'length':>6}{'batch':>6}{'ms: ours':>10}{'TFLOP/s':>9}{'of rate':>8}{others}")


def _print_row(row: Mapping[str, Any], rate: float) -> None:
    start = f"{row['length']:>6}{row['batch_size']:>6}"
    if not row["passed"]:
        errors = ", ".join(f"{name} {error:.1e}" for name, error in row["errors"].items())
        print(f"{start}  WRONG: differs from float32 by {errors}", flush=True)
        return
    cells = "".join(
        f"{row['seconds'][name] * 1e3:>20.4g}{ratio:>7.2f}" for name, ratio in row["ratios"].items()
    )
    own = f"{row['seconds'][OURS] * 1e3:>10.4g}{row['tflops']:>9.3g}"
    print(f"{start}{own}{row['tflops'] * 1e12 / rate:>8.1%}{cells}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
