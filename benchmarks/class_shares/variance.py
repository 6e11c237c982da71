"""Is English better drawn by a language's class shares, or drawn as it comes and weighted?

Both make the English side of the discriminator's loss a mean over English with the language's
shares q instead of its own, p. Compared is how much the gradient of w_D and b_D varies from batch
to batch, and how far its mean is from the weighted mean over all English texts, which is exact:

- as it comes: ordinary draws, without a weight. Their mean is that of other shares.
- drawn, golden ratio: as `class_shares` draws (`ClassSampler`).
- drawn, independent: each class by chance, then the class's next text.
- weighted: ordinary draws, each with the weight q(class) / p(class), over the batch size.
- weighted, normalised: the same, over the sum of the batch's weights.

Two discriminators: as a run begins with it, and fitted to these texts. Nothing is trained while
texts are drawn. The target side, which is the same in all ways, is left out.

python benchmarks/class_shares/variance.py --data DIR --languages ru,es
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from fastadv import AdversarialFinetuner, FinetuneConfig, samples
from fastadv.batches.class_sampling import ClassSampler
from fastadv.batches.sampling import Sampler
from fastadv.data import Document
from fastadv.selection.target_signals import spread
from fastadv.tasks.inference import embeddings
from fastadv.tasks.registry import task_of

Floats = NDArray[np.float64]
Draw = Callable[[int], NDArray[np.int64]]

SAMPLE_SHARES = (0.4, 0.3, 0.2, 0.1)
"""Of the packaged sample, whose texts have equal shares in every language."""
RIDGE = 1e-2
"""Weight of |w_D|^2 / 2 in the fitted discriminator's loss: it could else tell all texts apart."""


@dataclass(frozen=True)
class Row:
    """One way with one discriminator.

    Attributes:
        variance: Trace of the covariance of a batch's gradient.
        bias: Distance of the mean gradient from the exact one, over the length of the latter.
        chance: The bias that batches drawn independently would have without one.
    """

    variance: float
    bias: float
    chance: float


def main(argv: Sequence[str] | None = None) -> int:
    """Prints the shares of English and of each language, and a table; 0, or 2 if it cannot."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, metavar="DIR",
                        help="with en.train and LANG.train, lines of LABEL<TAB>text; else the "
                        "packaged sample of software, with shares of 0.4 to 0.1")  # fmt: skip
    parser.add_argument("--languages", default="es", metavar="LANG,...")
    parser.add_argument("--model", default="fastadv-mini")
    parser.add_argument("--texts", type=int, default=1000, help="of a language, at most")
    parser.add_argument("--max_length", type=int, default=64)
    parser.add_argument("--batch_size", type=int, default=16)
    parser.add_argument("--batches", type=int, default=3000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(argv)
    try:
        _measure(options)
    except (ValueError, OSError) as error:
        print(f"variance.py: {error}", file=sys.stderr)
        return 2
    return 0


def _measure(options: argparse.Namespace) -> None:
    task = task_of("classification")
    folder, found = options.data, {}
    for language in ("en", *options.languages.split(",")):
        part = "train" if folder is not None or language == "en" else "test"
        name = f"{language}.{part}"
        file = samples.documents("software", name) if folder is None else folder / name
        found[language] = task.labeled(str(file))
    english = spread(found.pop("en"), options.texts)
    labels = sorted({str(one.label) for one in english})
    config = FinetuneConfig(max_length=options.max_length, seed=options.seed)
    for language, examples in found.items():
        if unknown := sorted({str(one.label) for one in examples} - {*labels}):
            raise ValueError(
                f"found texts of {', '.join(unknown)} in {language}, expected the classes of "
                f"English: {', '.join(labels)}"
            )
    tuner = AdversarialFinetuner(options.model, "classification", labels, config)

    def read(examples: Sequence[Document]) -> Floats:
        dataset = tuner.preparation.tokenized(examples)
        return embeddings(tuner.model.encoder, dataset, config.eval_batch_size).astype(np.float64)

    home = read(english)
    classes = np.array([labels.index(str(one.label)) for one in english])
    own = np.bincount(classes) / len(classes)
    tables = {}
    for language, examples in found.items():
        shares = np.array([sum(one.label == label for one in examples) for label in labels])
        shares = shares / shares.sum()
        if folder is None:
            shares = np.array(SAMPLE_SHARES)
        weights = (shares / own)[classes]
        head = tuner.model.discriminator
        start = torch.cat([head.weight[0], head.bias]).detach().double().numpy()
        abroad = read(spread(examples, options.texts))
        fitted, right = fit(home, weights, abroad)
        draws = ways(classes, shares, options.seed)
        for name, at in (("start", start), ("fitted", fitted)):
            rows = gradients(home, at)
            tables[f"{language}, {name}"] = compare(rows, weights, draws, options)
        pairs = zip(labels, own, shares, strict=True)
        print(f"{language}: " + ", ".join(f"{n} {p:.2f} to {q:.2f}" for n, p, q in pairs)
              + f"; the fitted discriminator is right on {right:.0%}")  # fmt: skip
    _say(tables)


def gradients(features: Floats, discriminator: Floats) -> Floats:
    """(N, H + 1): the gradient of -log p of each English text, at w_D and then b_D.

    Args:
        features: (N, H), h̄ of the texts.
        discriminator: (H + 1,), w_D and then b_D.
    """
    rows = np.hstack([features, np.ones((len(features), 1))])
    found: Floats = (_sigmoid(rows @ discriminator) - 1)[:, None] * rows
    return found


def fit(english: Floats, weights: Floats, others: Floats) -> tuple[Floats, float]:
    """The discriminator with the least loss, English weighted, and `RIDGE`; by Newton's method.

    Returns:
        (H + 1,) w_D and then b_D; and the part of the texts that it tells right, a side counting as
        much as the other.
    """
    rows = np.hstack([np.vstack([english, others]), np.ones((len(english) + len(others), 1))])
    sides = np.arange(len(rows)) < len(english)
    each = np.concatenate([weights / weights.sum(), np.full(len(others), 1 / len(others))])
    ridge = np.full(rows.shape[1], RIDGE)
    ridge[-1] = 0
    found = np.zeros(rows.shape[1])

    def loss(at: Floats) -> float:
        signed = np.where(sides, 1, -1) * (rows @ at)
        return float(each @ np.logaddexp(0, -signed) + (ridge * at**2).sum() / 2)

    for _ in range(100):
        p = _sigmoid(rows @ found)
        slope = rows.T @ (each * (p - sides)) + ridge * found
        curvature = (rows.T * (each * p * (1 - p))) @ rows + np.diag(ridge + 1e-9)
        step = np.linalg.solve(curvature, slope)
        size = 1.0
        while loss(found - size * step) > loss(found) and size > 1e-6:
            size /= 2
        found = found - size * step
        if np.abs(size * step).max() < 1e-8:
            break
    return found, float(each @ ((rows @ found > 0) == sides) / 2)


def ways(
    classes: NDArray[np.int64], shares: Floats, seed: int
) -> dict[str, tuple[Callable[[], Draw], str]]:
    """By name a way to draw, afresh with each call, and what is done with weights."""

    def ordinary() -> Draw:
        return Sampler(len(classes), seed, "english").draw

    def golden() -> Draw:
        sampler = ClassSampler(classes, {"": shares.tolist()}, seed, "english")
        return lambda n: np.array(sampler.draw(n))

    def independent() -> Draw:
        chance = np.random.default_rng(seed)
        members = [np.flatnonzero(classes == k) for k in range(len(shares))]
        within = [Sampler(len(m), seed, f"class {k}") for k, m in enumerate(members)]

        def draw(n: int) -> NDArray[np.int64]:
            drawn = chance.choice(len(shares), n, p=shares)
            return np.array([members[k][int(within[k].draw(1)[0])] for k in drawn])

        return draw

    return {
        "as it comes": (ordinary, "none"),
        "drawn, golden ratio": (golden, "none"),
        "drawn, independent": (independent, "none"),
        "weighted": (ordinary, "over the size"),
        "weighted, normalised": (ordinary, "over their sum"),
    }


def compare(
    rows: Floats,
    weights: Floats,
    draws: dict[str, tuple[Callable[[], Draw], str]],
    options: argparse.Namespace,
) -> dict[str, Row]:
    """By name of a way, the mean and the spread of its batches' gradients.

    Args:
        rows: (N, D), the gradient of each English text.
        weights: (N,), q / p of its class.
        draws: See `ways`.
        options: `batches` and `batch_size` are read.
    """
    exact = weights @ rows / weights.sum()
    length = float(np.linalg.norm(exact))
    found = {}
    for name, (begin, weighting) in draws.items():
        draw = begin()
        chosen = draw(options.batches * options.batch_size).reshape(options.batches, -1)
        each = np.ones(chosen.shape) if weighting == "none" else weights[chosen]
        over = each.sum(axis=1) if weighting == "over their sum" else float(options.batch_size)
        # A batch without a text of any class of the language has no gradient then.
        over = np.where(over == 0, 1.0, over)
        means = np.stack([e @ rows[c] for e, c in zip(each, chosen, strict=True)])
        means /= np.broadcast_to(over, len(means))[:, None]
        variance = float(means.var(axis=0, ddof=1).sum())
        bias = float(np.linalg.norm(means.mean(axis=0) - exact)) / length
        found[name] = Row(variance, bias, float(np.sqrt(variance / len(means))) / length)
    return found


def _sigmoid(logits: Floats) -> Floats:
    return 0.5 + 0.5 * np.tanh(logits / 2)


def _say(tables: dict[str, dict[str, Row]]) -> None:
    """A row for each way, two columns for each table; variances relative to the first way's."""
    print(f"{'':22}" + "".join(f"{name:>17}" for name in tables))
    print(f"{'':22}" + f"{'variance':>10}{'bias':>7}" * len(tables))
    names = list(next(iter(tables.values())))
    for name in names:
        cells = ""
        for table in tables.values():
            relative = table[name].variance / table[names[0]].variance
            cells += f"{relative:10.2f}{table[name].bias:7.3f}"
        print(f"{name:22}{cells}")
    chances = [row.chance for table in tables.values() for row in table.values()]
    print(f"A bias of {min(chances):.3f} to {max(chances):.3f} may be chance.")


if __name__ == "__main__":
    sys.exit(main())
