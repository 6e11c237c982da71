"""Times one whole iteration of Algorithm 1 (T, D, G and their updates) against the baselines.

All systems run in the same process over the same batches in turn. Before anything is timed, each
is checked against the reference; no ratio is printed for one that fails, and the exit status is 1.
"""

from __future__ import annotations

import argparse
import dataclasses
import gc
import json
import statistics
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from step_batches import (
    SHAPES,
    DrawnTexts,
    RealTexts,
    Shape,
    StepDraws,
    make_tokenizer,
    real_texts,
    step_flops,
)
from step_check import Check, check
from step_machine import Memory, copy_bandwidth, describe, matrix_rate, seconds
from step_report import print_checks, print_head, print_times
from step_systems import SYSTEMS, Library, Padded, Setup, System
from torch import Tensor
from transformers import BertConfig, BertModel, PreTrainedModel

from fastadv import FinetuneConfig
from fastadv.encoder import load_encoder
from fastadv.heads import output_projection
from fastadv.precision import resolve_precision

# Weights are random: time does not depend on their values.
MODELS: dict[str, dict[str, Any]] = {
    # bert-base-multilingual-cased.
    "mbert": {
        "vocab_size": 119547,
        "hidden_size": 768,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
        "intermediate_size": 3072,
    },
    "tiny": {
        "vocab_size": 500,
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 64,
    },
}
# The check runs in float32 and several times over; on a CPU its texts are short.
CHECK_BATCH, CHECK_LENGTH = 3, 24


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the benchmark; 0 if every system passed its check, else 1."""
    options = _options(argv)
    device = torch.device(options.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    gpu = device.type == "cuda"
    options.batch_size = options.batch_size or (32 if gpu else 16)
    options.steps = options.steps or (20 if gpu else 3)
    tokenizer = make_tokenizer(options.model, options.data)
    encoder = _encoder(options.model, len(tokenizer) if options.data else None)
    names = list(SHAPES) if options.shape == "both" else [options.shape]
    setups = {n: _setup(encoder, tokenizer, SHAPES[n], options.precision, device) for n in names}
    precision = setups[names[0]].config.precision
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    report: dict[str, Any] = {
        "machine": describe(device),
        "settings": {
            "model": Path(options.model).name,
            "batch_size": options.batch_size,
            "steps": options.steps,
            "precision": precision,
            "device": device.type,
            "data": "real" if options.data else "drawn",
        },
        "matrix_tflops": matrix_rate(device, dtype) / 1e12,
        "copy_gb_per_s": copy_bandwidth(device) / 1e9,
        "shapes": {},
    }
    print_head(report)
    passed = True
    for name, setup in setups.items():
        shape = SHAPES[name]
        texts = _texts(options, shape, setup)
        results = report["shapes"][name] = _run(name, setup, texts, options, report)
        passed = passed and all(c["passed"] for c in results["checks"])
        print_times(results)
    if options.json:
        options.json.write_text(json.dumps(report, indent=1) + "\n")
    return 0 if passed else 1


def _options(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shape", choices=[*SHAPES, "both"], default="both")
    parser.add_argument("--model", default="mbert", help="mbert, tiny, or a model's folder")
    parser.add_argument("--batch-size", type=_positive, help="default 16, on a GPU 32")
    parser.add_argument("--steps", type=_positive, help="timed steps; default 3, on a GPU 20")
    parser.add_argument("--precision", choices=["auto", "bf16", "fp32"], default="auto")
    parser.add_argument("--data", type=Path, help="take texts from here instead of drawing some")
    parser.add_argument("--json", type=Path, help="write the results here too")
    parser.add_argument("--device", help="default: the GPU if there is one")
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args(argv)


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"found {text!r}, expected a whole number of at least 1")
    return int(text)


def _encoder(model: str, vocab_size: int | None) -> PreTrainedModel:
    if model not in MODELS:
        return load_encoder(Path(model))
    settings = MODELS[model]
    if vocab_size is not None:
        settings = settings | {"vocab_size": vocab_size}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return BertModel(BertConfig(**settings))


def _setup(
    encoder: PreTrainedModel, tokenizer: Any, shape: Shape, precision: Any, device: torch.device
) -> Setup:
    config = FinetuneConfig(precision=precision, max_length=shape.max_length).resolved(shape.task)
    hidden, std = encoder.config.hidden_size, encoder.config.initializer_range
    return Setup(
        encoder,
        output_projection(hidden, len(shape.labels), std, seed=1),
        output_projection(hidden, 1, std, seed=2),
        tokenizer,
        shape.task,
        shape.labels,
        resolve_precision(config, device),
        device,
    )


def _texts(options: argparse.Namespace, shape: Shape, setup: Setup) -> DrawnTexts | RealTexts:
    if options.data is None:
        return DrawnTexts(shape, setup.encoder.config.vocab_size, options.seed)
    return real_texts(options.data, shape, setup.tokenizer, options.seed)


def _run(
    name: str,
    setup: Setup,
    texts: DrawnTexts | RealTexts,
    options: argparse.Namespace,
    rates: dict[str, Any],
) -> dict[str, Any]:
    """Checks, and if all pass the times, of one shape."""
    checks: list[Check] = []
    small = _check_draws(setup)
    for kind in SYSTEMS:
        if kind is not Padded:
            checks.append(check(kind, setup, small))
            _free(setup.device)
    results: dict[str, Any] = {
        "checks": [dataclasses.asdict(c) | {"passed": c.passed} for c in checks]
    }
    print_checks(name, results["checks"])
    if not all(c.passed for c in checks):
        return results
    draws = [texts.step(options.batch_size) for _ in range(options.steps + 1)]
    timed = draws[1:]
    flops = statistics.fmean(step_flops(setup.encoder.config, d) for d in timed)
    traffic = statistics.fmean(optimizer_bytes(setup, d) for d in timed)
    matrix_seconds = flops / (rates["matrix_tflops"] * 1e12)
    floor = matrix_seconds + traffic / (rates["copy_gb_per_s"] * 1e9)
    results |= {
        "useful_tokens": statistics.fmean(d.useful_tokens for d in timed),
        "padded_tokens": statistics.fmean(d.padded_tokens for d in timed),
        "tflop": flops / 1e12,
        "optimizer_gb": traffic / 1e9,
        "floor_seconds": floor,
        "floor_matrix_seconds": matrix_seconds,
        "systems": {},
        "ratios": {},
    }
    runs = interleaved(SYSTEMS, setup, draws)
    _free(setup.device)
    for name, (times, memory) in runs.items():
        middle = statistics.median(times)
        results["systems"][name] = {
            "seconds": middle,
            "runs": times,
            "useful_tflops": flops / middle / 1e12,
            "fraction_of_floor": floor / middle,
            "peak_memory_gb": memory / 1e9,
        }
    own = runs.pop(Library.name)[0]
    for name, (times, _) in runs.items():
        pairs = [theirs / ours for theirs, ours in zip(times, own, strict=True)]
        results["ratios"][name] = {"median": statistics.median(pairs), "pairs": pairs}
    return results


def _check_draws(setup: Setup) -> StepDraws:
    (shape,) = (s for s in SHAPES.values() if s.task == setup.task)
    if setup.device.type == "cpu":
        shape = dataclasses.replace(shape, max_length=CHECK_LENGTH, median=CHECK_LENGTH / 2)
    return DrawnTexts(shape, setup.encoder.config.vocab_size, seed=1).step(CHECK_BATCH)


def optimizer_bytes(setup: Setup, draws: StepDraws) -> int:
    """Bytes that the updates of T and G cannot do without.

    Per weight 28: the float32 weight and its two moments read and written, the gradient read. Of
    the embedding table only the rows that the batch holds count: without weight decay the update
    of the others can wait until they are read. D's few hundred weights are left out.
    """
    table: Tensor = setup.encoder.get_input_embeddings().weight  # type: ignore[assignment]
    pooler = getattr(setup.encoder, "pooler", None)
    unused = sum(p.numel() for p in pooler.parameters()) if pooler is not None else 0
    dense = sum(p.numel() for p in setup.encoder.parameters()) - unused - table.numel()
    rows_task, rows_generator = draws.rows()
    head = sum(p.numel() for p in setup.task_head.parameters())
    return 28 * (2 * dense + head + (rows_task + rows_generator) * table.shape[1])


def interleaved(
    kinds: Sequence[type[System]], setup: Setup, draws: Sequence[StepDraws]
) -> dict[str, tuple[list[float], int]]:
    """Seconds of every step but the first, and peak memory in bytes, of each system.

    Step by step over the same draws; who goes first changes from step to step. The first draw is
    stepped through twice, untimed: to make the optimisers' states, then for the memory, which is
    what a system holds between steps and what a step takes beyond that for a while.
    """
    device, memory = setup.device, Memory(setup.device)
    rounds: list[tuple[str, Callable[[StepDraws], float]]] = []
    peaks: dict[str, int] = {}
    times: dict[str, list[float]] = {kind.name: [] for kind in kinds}
    for kind in kinds:
        before = memory.held()
        run = _runner(kind(setup), device)
        run(draws[0])
        held = memory.held() - before
        peaks[kind.name] = held + memory.extra(lambda run=run: run(draws[0]))  # type: ignore[misc]
        rounds.append((kind.name, run))
    for number, draw in enumerate(draws[1:]):
        first = number % len(rounds)
        for name, run in rounds[first:] + rounds[:first]:
            times[name].append(run(draw))
    return {name: (times[name], peaks[name]) for name in times}


def _runner(system: System, device: torch.device) -> Callable[[StepDraws], float]:
    def run(draws: StepDraws) -> float:
        batches = system.prepare(draws)
        return seconds(lambda: system.step(batches), device)

    return run


def _free(device: torch.device) -> None:
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


if __name__ == "__main__":
    sys.exit(main())
