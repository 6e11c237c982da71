"""Tokens per second of a pretraining step, compared with transformers'.

Both train the same model from the same weights on the same batches. With --corpus the batches are
real paragraphs, drawn as `fastadv pretrain` draws them; transformers pads them to the longest, and
only real tokens count. Without it they are blocks of 128 pieces: transformers' own example cuts
text this way, regardless of where a paragraph ends, so that there is no padding. 15% is masked.

Ours is `Pretrainer.step`. "transformers" is BertForMaskedLM under autocast to bfloat16 and
torch.compile with PyTorch's fused AdamW and gradient clipping; it scores all tokens. "masked" calls
its head on the masked tokens alone, which transformers by itself does not do. The losses of all
masked tokens are first compared with float32, and no ratio is printed for a wrong result.

python benchmarks/pretrain_time.py --corpus runs/pretrain/corpus.npz
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from step.compiled import compiler_missing
from step.machine import describe, versions
from torch import Tensor
from torch.nn import functional as F
from transformers import BertForMaskedLM, PreTrainedTokenizerFast

from fastadv.pretraining.batches import LanguageBatches
from fastadv.pretraining.config import PretrainConfig
from fastadv.pretraining.corpus import Corpus
from fastadv.pretraining.masking import MaskedBatch
from fastadv.pretraining.pretrainer import Pretrainer
from fastadv.pretraining.vocabulary import train_vocabulary

LENGTH = 128
# Ours rounds where theirs does. Sums of equally many roundings may differ by a factor of two.
OWN_LIMIT = 2.0


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the benchmark; returns 0 if the results were right, 1 if not, 2 if it cannot run."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--vocabulary", type=int, default=16384)
    parser.add_argument("--corpus", type=Path, metavar="NPZ", help="of a prepared run")
    parser.add_argument("--tokens", type=int, default=4096, help="in a batch")
    parser.add_argument("--rounds", type=int, default=7, help="interleaved, medians are printed")
    parser.add_argument("--steps", type=int, default=10, help="of each way in a round")
    parser.add_argument("--no-compile", action="store_true", help="transformers as it is")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the results here too")
    parser.add_argument("--device", help="default: the GPU if there is one")
    options = parser.parse_args(argv)
    device = torch.device(options.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    missing = None if options.no_compile else compiler_missing(device)
    if missing:
        print(f"pretrain_time.py: {missing}", file=sys.stderr)
        return 2
    report = _measure(options, device)
    if options.json:
        options.json.write_text(json.dumps(report, indent=1) + "\n")
    return 0 if report["passed"] else 1


def _measure(options: argparse.Namespace, device: torch.device) -> dict[str, Any]:
    corpus = Corpus.load(options.corpus) if options.corpus else None
    if corpus is not None:
        options.vocabulary = corpus.vocabulary
    ours = _pretrainer(options, device)
    batches = [_batch(options, corpus, number).to(device) for number in range(options.steps)]
    tokens = sum(batch.num_tokens for batch in batches)
    theirs = _transformers(ours).to(device)
    errors = _errors(ours, theirs, batches[0])
    passed = errors["ours"] <= OWN_LIMIT * errors["transformers"]
    print(f"error of token losses: ours {errors['ours']:.1e}, {errors['transformers']:.1e}")
    print("results agree" if passed else "WRONG RESULTS, no ratios")
    ways = {
        "ours": lambda b: ours.step((b, None, None)),
        "transformers": _step(copy.deepcopy(theirs), _all_tokens, options),
        "masked": _step(copy.deepcopy(theirs), _masked_tokens, options),
    }
    found: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(options.rounds + 1):
        for name, way in ways.items():
            seconds = _seconds(way, batches, device)
            # The first turn compiles and warms up.
            if turn:
                found[name].append(seconds)
    report: dict[str, Any] = {
        "machine": describe(device),
        "versions": versions(device),
        "settings": {k: v for k, v in vars(options).items() if k not in ("json", "corpus")},
        "paragraphs": corpus is not None,
        "tokens": tokens,
        "errors": errors,
        "passed": passed,
        "seconds": found,
    }
    rates = {n: tokens / statistics.median(s) for n, s in found.items()}
    report["tokens_per_second"] = rates
    for name, rate in rates.items():
        ratios = [a / b for a, b in zip(found[name], found["ours"], strict=True)]
        spread = f"{min(ratios):.2f} to {max(ratios):.2f}"
        ratio = f"ours {statistics.median(ratios):.2f} times as fast ({spread})" if passed else ""
        print(f"{name:13} {rate:10,.0f} tokens/s   {ratio if name != 'ours' else ''}".rstrip())
    return report


def _seconds(
    step: Callable[[MaskedBatch], object], batches: list[MaskedBatch], device: torch.device
) -> float:
    started = time.perf_counter()
    for batch in batches:
        step(batch)
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - started


def _pretrainer(options: argparse.Namespace, device: torch.device) -> Pretrainer:
    config = PretrainConfig(
        vocabulary_size=options.vocabulary, tokens_per_batch=options.tokens, precision="bf16",
        max_length=LENGTH, warmup_steps=1,
    )  # fmt: skip
    sentence = "a few words are enough of a text for a model that is not to learn"
    words = sentence.split()
    texts = {"en": [" ".join(words[i:] + words[:i]) for i in range(len(words))]}
    tokenizer = train_vocabulary(texts, 200)
    # The matrix products do not depend on the pieces' names.
    corpus = replace(Corpus.of(texts, tokenizer, LENGTH), vocabulary=options.vocabulary)
    tokenizer = _Sized(tokenizer, options.vocabulary)
    return Pretrainer(corpus, tokenizer, config, device)


class _Sized:
    """A tokenizer with a vocabulary of another size."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast, size: int) -> None:
        self.tokenizer, self.size = tokenizer, size

    def __len__(self) -> int:
        return self.size


def _batch(options: argparse.Namespace, corpus: Corpus | None, number: int) -> MaskedBatch:
    if corpus is None:
        return _blocks(options, number)
    return LanguageBatches(corpus, options.tokens, 0).masked_batch(number)


def _blocks(options: argparse.Namespace, seed: int) -> MaskedBatch:
    rng = np.random.default_rng(seed)
    count = options.tokens // LENGTH
    # Pieces as often as in text: the n-th with a frequency proportional to 1 / n.
    share = 1 / np.arange(1, options.vocabulary - 4)
    ids = rng.choice(np.arange(5, options.vocabulary), count * LENGTH, p=share / share.sum())
    masked = np.sort(rng.choice(len(ids), int(0.15 * len(ids)), replace=False))
    labels = ids[masked].copy()
    ids[masked] = 4
    return MaskedBatch(
        input_ids=torch.from_numpy(ids),
        position_ids=torch.arange(LENGTH).repeat(count),
        cu_seqlens=torch.arange(0, len(ids) + 1, LENGTH, dtype=torch.int32),
        max_seqlen=LENGTH,
        labels=torch.from_numpy(labels),
        english=None,
        num_examples=count,
        masked=torch.from_numpy(masked),
    )


def _transformers(ours: Pretrainer) -> BertForMaskedLM:
    """The same weights in transformers' class, in its own memory."""
    config = copy.deepcopy(ours.model.encoder.config)
    model = BertForMaskedLM(config)
    head, cls = ours.model.task_head, model.cls.predictions
    with torch.no_grad(), ours.model.encoder.complete() as encoder:
        model.bert.load_state_dict(encoder.state_dict(), strict=False)
        for to, source in (
            (cls.transform.dense, head.dense), (cls.transform.LayerNorm, head.norm)
        ):  # fmt: skip
            to.load_state_dict(source.state_dict())
        cls.bias.copy_(head.bias)
    model.tie_weights()
    return model.train()


def _inputs(batch: MaskedBatch) -> dict[str, Tensor]:
    """(B, L) ids and, where there is padding, which of them are real."""
    ids, mask = batch.pad(0)
    return {"input_ids": ids} if ids.numel() == batch.num_tokens else {
        "input_ids": ids, "attention_mask": mask
    }  # fmt: skip


def _places(batch: MaskedBatch) -> Tensor:
    """(M,) indices of the masked tokens among the padded ones."""
    return batch.padded_indices()[batch.masked]


def _all_tokens(model: BertForMaskedLM, batch: MaskedBatch) -> Tensor:
    inputs = _inputs(batch)
    labels = torch.full_like(inputs["input_ids"], -100)
    labels.view(-1)[_places(batch)] = batch.labels
    loss: Tensor = model(**inputs, labels=labels).loss
    return loss


def _masked_tokens(model: BertForMaskedLM, batch: MaskedBatch) -> Tensor:
    return _token_losses(model, batch).mean()


def _token_losses(model: BertForMaskedLM, batch: MaskedBatch) -> Tensor:
    assert batch.labels is not None
    hidden = model.bert(**_inputs(batch)).last_hidden_state.flatten(0, 1)[_places(batch)]
    return F.cross_entropy(model.cls(hidden).float(), batch.labels, reduction="none")


def _errors(ours: Pretrainer, theirs: BertForMaskedLM, batch: MaskedBatch) -> dict[str, float]:
    """Relative errors of the losses of masked tokens, in bfloat16 against float32."""
    with torch.no_grad():
        exact = _token_losses(theirs, batch)
        with torch.autocast(batch.input_ids.device.type, torch.bfloat16):
            low = _token_losses(theirs, batch)
        found = {"ours": ours.model.token_losses(batch), "transformers": low}
    return {n: float((x - exact).norm() / exact.norm()) for n, x in found.items()}


def _step(
    model: BertForMaskedLM,
    loss_of: Callable[[BertForMaskedLM, MaskedBatch], Tensor],
    options: argparse.Namespace,
) -> Callable[[MaskedBatch], object]:
    optimizer = torch.optim.AdamW(
        model.parameters(), 1e-3, (0.9, 0.98), 1e-6, weight_decay=0.01, fused=True
    )
    if not options.no_compile:
        loss_of = torch.compile(loss_of)

    def step(batch: MaskedBatch) -> None:
        with torch.autocast(batch.input_ids.device.type, torch.bfloat16):
            loss = loss_of(model, batch)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


if __name__ == "__main__":
    sys.exit(main())
