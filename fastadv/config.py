"""Every setting of a run, in one frozen dataclass.

"paper" below is Keung, Lu and Bhardwaj, "Adversarial Learning with Contextual Embeddings for
Zero-resource Cross-lingual Classification and NER", EMNLP 2019. What the paper does not say is
marked as ours.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, get_args

TaskName = Literal["classification", "ner"]
Precision = Literal["auto", "bf16", "fp16", "fp32"]
EncoderChoice = Literal["auto", "packed", "padded"]
NonFinite = Literal["stop", "skip"]
Recipe = Literal["paper", "recommended"]
Scheduler = Literal["constant", "linear"]
Selection = Literal[
    "english_dev", "entropy", "information", "nuclear_norm", "english_dev+nuclear_norm"
]

ClassShares = Literal["ignore", "estimate"] | dict[str, Any]
"""For all languages alike, or by language: "estimate", or a share of each class."""
MatchShares = Literal["english", "equal", "halfway", "estimate"] | dict[str, Any]
"""The same; named shares are of English training data, equal, or half-way between."""


@dataclass(frozen=True)
class TaskSettings:
    """What a run knows about its task before anything is loaded; the rest is in `fastadv.tasks`.

    Attributes:
        metric: The one number by which runs are compared and selected, of those that score them.
        defaults: Values of the fields of `FinetuneConfig` that are None, where nothing else is
            recommended for the encoder.
        windows: Whether an example of more than `max_length` pieces becomes overlapping windows;
            else it is cut.
        one_class: Whether an example has one class, of which a language has a share.
    """

    metric: str
    defaults: Mapping[str, float | int]
    windows: bool = False
    one_class: bool = True


# Rates are the paper's (sections 3.2 and 3.3); max_length is ours.
TASK_SETTINGS: dict[TaskName, TaskSettings] = {
    "classification": TaskSettings(
        metric="accuracy",
        defaults={
            "lr_task": 2e-6,
            "lr_discriminator": 5e-5,
            "lr_generator": 2e-8,
            "max_length": 256,
        },
    ),
    "ner": TaskSettings(
        metric="f1",
        defaults={
            "lr_task": 6e-6,
            "lr_discriminator": 5e-4,
            "lr_generator": 6e-8,
            "max_length": 128,
        },
        windows=True,
        one_class=False,
    ),
}
SCORE: dict[TaskName, str] = {name: task.metric for name, task in TASK_SETTINGS.items()}
"""The one number by which a task's runs are compared and selected."""


@dataclass(frozen=True)
class FinetuneConfig:
    """Settings of an adversarial finetuning run; `None` leaves a value to `recipe` and the task.

    Args:
        steps: Iterations of Algorithm 1, each one task, one discriminator and one generator
            update (paper, section 3.1: "sequentially at a 1:1:1 ratio").
        adversarial: Run the discriminator and generator phases. False is the paper's
            "BERT En-labels" row: task phase only, same code, same task batches.
        batch_size: Labelled examples in a task batch; a D or G batch holds as many texts of each
            side. Ours: the paper does not state it.
        tokens_per_batch: Word pieces in a task batch instead of a number of examples: it takes the
            next examples as long as they fit, special tokens and all windows of a sentence
            counted; one with more is a batch by itself. In a D or G batch it holds for either
            side, which get equally many texts. Losses stay means over examples, so that those in
            batches of few, long texts weigh more. None for batch_size. Ours.
        max_length: Longest sequence in word pieces with special tokens. Default 256 for documents
            (longer ones are cut), 128 for NER (longer sentences become overlapping windows). Ours.
        window_overlap: Word pieces shared by neighbouring windows of a long NER sentence. Default
            a quarter of max_length. Ours.
        lr_task: Adam learning rate of the task phase. Default as `recipe` says: 2e-6, NER 6e-6
            (paper, 3.2, 3.3), or what fits the encoder; so for the next two.
        lr_discriminator: The discriminator's. Default 5e-5, NER 5e-4 (paper, 3.2, 3.3).
        lr_generator: The generator's. Default 2e-8, NER 6e-8 (paper, 3.2, 3.3).
        relaxation: Let other languages be up to 1 + relaxation times as dense as English anywhere
            before discriminator and generator mind, for target text that has fewer of a class, or
            none: the asymmetrically relaxed alignment of Wu, Winston, Kaushik and Lipton, ICML
            2019, in its Jensen-Shannon form. 0 switches it off, as in the paper. Ours.
        beta1: Adam's first-moment decay. Ours, Adam's usual 0.9.
        beta2: Adam's second-moment decay. Ours, Adam's usual 0.999.
        eps: Adam's epsilon. Ours, Adam's usual 1e-8.
        weight_decay: Decoupled weight decay in all three optimisers. Ours: none.
        max_grad_norm: Clip each phase's gradient to this global norm. Ours: no clipping.
        nonfinite_gradients: What a phase does whose gradient holds a NaN or an infinity: "stop" the
            run, or "skip" its update, weights and moments untouched. Ours.
        dropout: Encoder dropout (hidden and attention) in all three phases; None keeps the
            checkpoint's own, 0.1 for multilingual BERT. Ours.
        head_dropout: Dropout before the task head. Ours: none.
        precision: "bf16" runs the encoder's matrix products in bfloat16 over float32 weights,
            "fp16" in float16 with loss scaling, "fp32" in float32; "auto" takes bf16 where the
            processor multiplies bfloat16 itself, else fp16 on a GPU and fp32 on a CPU. Ours.
        encoder: "packed" is the library's encoder, without padding, for BERT, RoBERTa, XLM-RoBERTa
            and DistilBERT; "padded" is transformers' own, for any; "auto" takes "packed" where it
            can. Ours.
        cuda_graphs: On a GPU, replay steps as CUDA graphs in `fit`, over batches that are filled
            up to one of few sizes; steps that cannot be captured run as they are. Ours.
        seed: Seeds head initialisation, data order and dropout; nothing else is random.
        source_language: Code of the labelled language, the paper's English.
        selection: What chooses the step whose weights become best/: "english_dev", the score on
            labelled English (paper, section 3.1), or what predictions on unlabelled text of the
            target languages look like, over several languages their mean: "nuclear_norm",
            "information" or "entropy", or both by "english_dev+nuclear_norm", the mean of the
            ranks (see `fastadv.selection`). Ours but for the first.
        mean_weights: Also keep the mean of the weights at the evaluations in the second half of
            the run, as mean/ (see `fastadv.run.weight_mean`). Ours.
        class_shares: How the English side of D and G batches is drawn. "ignore" takes English
            text as it comes (paper). With shares of the classes by language, such as {"de":
            {"sport": 0.2, "economy": 0.8}}, a language's text stands beside labelled English
            examples with its shares; a language that is not named, beside English as it comes.
            "estimate", for all or for a language, estimates them from the predictions on its text
            and on English dev (see `fastadv.shares.estimate`), starting from English ones. Else
            the adversary moves texts of one class onto another where shares differ (Zhao et al.,
            "On Learning Invariant Representations for Domain Adaptation", ICML 2019). For
            documents only. Ours.
        shares_every: Steps between estimates. Ours.
        match_shares: Also score, and keep with the model, predictions matched to class shares:
            those of "english" training data, "equal" ones, "halfway" between, an "estimate", or
            given ones by language. Changes no step. Ours: none.
        lr_scheduler_type: The task phase's rate: "constant" is the paper's; "linear" falls from
            lr_task to 0 at `steps`. The discriminator's and the generator's rates stay constant,
            as in the paper. Ours but for the first.
        warmup_steps: Steps at the start in which the task phase's rate rises linearly to lr_task,
            with either scheduler; the first step's is lr_task / warmup_steps. The paper has none.
        recipe: What fields get that are left open: "paper", the paper's values, or "recommended",
            what fits the encoder (`fastadv.recommended`): rates of their own for
            fastadv-mini and e5-small, and for all others the paper's. Ours.
        eval_every: Steps between evaluations (the last step is always evaluated); 0 for none but
            the last.
        eval_at_start: Also evaluate before the first step (the origin of Figure 2).
        eval_batch_size: Sequences of the greatest length in an evaluation batch; of shorter ones
            as many as take no more word pieces.
        checkpoint_every: Steps between checkpoints; 0 for one at the end only.
        log_every: Steps between training records in metrics.jsonl.
        backend: Backend of our operations ("torch", "native", "triton"); None leaves the choice
            to `fastadv.backends`.
    """

    steps: int = 2000
    adversarial: bool = True
    batch_size: int = 32
    tokens_per_batch: int | None = None
    max_length: int | None = None
    window_overlap: int | None = None
    lr_task: float | None = None
    lr_discriminator: float | None = None
    lr_generator: float | None = None
    relaxation: float = 0.0
    beta1: float = 0.9
    beta2: float = 0.999
    eps: float = 1e-8
    weight_decay: float = 0.0
    max_grad_norm: float | None = None
    nonfinite_gradients: NonFinite = "stop"
    dropout: float | None = None
    head_dropout: float = 0.0
    precision: Precision = "auto"
    encoder: EncoderChoice = "auto"
    cuda_graphs: bool = True
    seed: int = 0
    source_language: str = "en"
    selection: Selection = "english_dev"
    mean_weights: bool = False
    class_shares: ClassShares = "ignore"
    shares_every: int = 50
    match_shares: MatchShares | None = None
    lr_scheduler_type: Scheduler = "constant"
    warmup_steps: int = 0
    recipe: Recipe = "recommended"
    eval_every: int = 100
    eval_at_start: bool = False
    eval_batch_size: int = 32
    checkpoint_every: int = 500
    log_every: int = 10
    backend: str | None = None

    # What a resumed run may change: none of these alters what a step computes. A recipe's values
    # are in the fields that it fills.
    FREE_ON_RESUME: ClassVar[frozenset[str]] = frozenset(
        (
            "steps", "match_shares", "recipe", "eval_every", "eval_at_start", "eval_batch_size",
            "checkpoint_every", "log_every",
        )
    )  # fmt: skip

    def __post_init__(self) -> None:
        _check(self)

    @property
    def free_on_resume(self) -> frozenset[str]:
        """Fields that a resumed run may change: not `steps` where the rates follow from it."""
        if self.lr_scheduler_type == "constant":
            return self.FREE_ON_RESUME
        return self.FREE_ON_RESUME - {"steps"}

    def resolved(
        self, task: TaskName, recommended: Mapping[str, float | int] | None = None
    ) -> ResolvedConfig:
        """The same settings with nothing left open.

        Args:
            task: Its defaults are the paper's values.
            recommended: Values that fit the encoder (`fastadv.recommended`), which go
                before the task's defaults, unless the recipe is the paper's.

        Raises:
            ValueError: There is no such task, or `window_overlap` leaves no room in a window of
                `max_length`.
        """
        if task not in TASK_SETTINGS:
            raise ValueError(f"task is {task!r}, expected one of {', '.join(TASK_SETTINGS)}")
        settings = TASK_SETTINGS[task]
        values = dataclasses.asdict(self)
        chosen = recommended or {} if self.recipe == "recommended" else {}
        for name, default in {**settings.defaults, **chosen}.items():
            if values[name] is None:
                values[name] = default
        if not settings.one_class and self.class_shares != "ignore":
            raise ValueError(
                f"class_shares is {self.class_shares!r} for {task}, whose texts have no class "
                "each, expected 'ignore'; match_shares matches predictions all the same"
            )
        if values["window_overlap"] is None:
            values["window_overlap"] = values["max_length"] // 4
        if settings.windows and values["window_overlap"] >= values["max_length"] - 2:
            raise ValueError(
                f"window_overlap is {values['window_overlap']}, expected less than max_length - 2 "
                f"= {values['max_length'] - 2} so that windows advance"
            )
        return ResolvedConfig(**values)


@dataclass(frozen=True, kw_only=True)
class ResolvedConfig(FinetuneConfig):
    """A `FinetuneConfig` in which nothing is left open."""

    max_length: int
    window_overlap: int
    lr_task: float
    lr_discriminator: float
    lr_generator: float

    def rates(self, step: int) -> dict[str, float]:
        """By phase, the learning rates in step `step`, counted from 0, that are not constant."""
        falling = self.steps - self.warmup_steps if self.lr_scheduler_type == "linear" else 0
        if not (falling or self.warmup_steps):
            return {}
        return {"task": self.lr_task * rate_factor(step, self.steps, self.warmup_steps, falling)}


def rate_factor(step: int, steps: int, rising: int, falling: int, final: float = 0.0) -> float:
    """The factor of a learning rate that rises from 0, stays, and falls to `final`, linearly.

    Args:
        step: Counted from 0; the first step's factor is above 0.
        steps: Steps in all; after the last the factor would be `final`.
        rising: Steps until the factor is 1.
        falling: Last steps, in which it falls.
        final: What it falls to, a share of 1.
    """
    if step < rising:
        return (step + 1) / rising
    left = steps - step
    if left < falling:
        return final + (1 - final) * left / falling
    return 1.0


_AT_LEAST_ONE = ("steps", "shares_every", "batch_size", "eval_batch_size", "log_every")
_AT_LEAST_ZERO = ("window_overlap", "warmup_steps", "eval_every", "checkpoint_every", "seed")
_NOT_NEGATIVE = ("lr_task", "lr_discriminator", "lr_generator", "relaxation", "weight_decay")
_FRACTIONS = ("beta1", "beta2", "dropout", "head_dropout")


_MATCHED = ("english", "equal", "halfway", "estimate")


def _check_shares(name: str, value: object, words: tuple[str, ...]) -> None:
    """Numbers are checked beside the labels, which are not known yet."""
    allowed = ", ".join(map(repr, words))
    given = [*value.values()] if isinstance(value, Mapping) else [value]
    for one in given:
        if not (one in words if isinstance(one, str) else isinstance(one, Mapping)):
            raise ValueError(
                f"{name} is {one!r}, expected {allowed}, or shares of the classes by language"
            )
        if isinstance(one, Mapping) and not all(isinstance(v, int | float) for v in one.values()):
            raise ValueError(f"{name} is {value!r}, expected a number for every class")
    if isinstance(value, Mapping) and not value:
        raise ValueError(f"{name} is empty, expected shares of at least one language")


def _check(config: FinetuneConfig) -> None:
    def refuse(name: str, expected: str) -> None:
        raise ValueError(f"{name} is {getattr(config, name)!r}, expected {expected}")

    for name in _AT_LEAST_ONE:
        if getattr(config, name) < 1:
            refuse(name, "a whole number of at least 1")
    if config.tokens_per_batch is not None and config.tokens_per_batch < 1:
        refuse("tokens_per_batch", "a whole number of at least 1, or None for batch_size")
    for name in _AT_LEAST_ZERO:
        value = getattr(config, name)
        if value is not None and value < 0:
            refuse(name, "a whole number of at least 0")
    for name in _NOT_NEGATIVE:
        value = getattr(config, name)
        if value is not None and not (math.isfinite(value) and value >= 0):
            refuse(name, "a finite number of at least 0")
    for name in _FRACTIONS:
        value = getattr(config, name)
        if value is not None and not 0 <= value < 1:
            refuse(name, "a number in [0, 1)")
    if not config.eps > 0:
        refuse("eps", "a number above 0")
    if config.max_grad_norm is not None and not config.max_grad_norm > 0:
        refuse("max_grad_norm", "a number above 0, or None for no clipping")
    if config.max_length is not None and config.max_length < 3:
        refuse("max_length", "at least 3, one piece between two special tokens")
    if config.precision not in ("auto", "bf16", "fp16", "fp32"):
        refuse("precision", "'auto', 'bf16', 'fp16' or 'fp32'")
    if config.nonfinite_gradients not in ("stop", "skip"):
        refuse("nonfinite_gradients", "'stop' or 'skip'")
    if config.selection not in get_args(Selection):
        refuse("selection", ", ".join(map(repr, get_args(Selection))))
    _check_shares("class_shares", config.class_shares, ("ignore", "estimate"))
    if config.match_shares is not None:
        _check_shares("match_shares", config.match_shares, _MATCHED)
    if config.encoder not in ("auto", "packed", "padded"):
        refuse("encoder", "'auto', 'packed' or 'padded'")
    if config.recipe not in get_args(Recipe):
        refuse("recipe", "'paper' or 'recommended'")
    if config.lr_scheduler_type not in get_args(Scheduler):
        refuse("lr_scheduler_type", "'constant' or 'linear'")
    if config.lr_scheduler_type == "linear" and config.warmup_steps >= config.steps:
        refuse("warmup_steps", f"fewer than steps, {config.steps}, for lr_scheduler_type 'linear'")
