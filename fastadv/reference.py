"""Algorithm 1 of Keung, Lu and Bhardwaj (EMNLP 2019) in plain PyTorch: the oracle, and baseline B0.

Nothing here is fast and nothing here is shared with the fast path: transformers' encoder over
padded batches, `torch.optim.Adam` three times, one backward pass per phase through everything. Each
line that is in the paper carries its number. Every other implementation in this library is checked
against this one.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.parameter import Parameter

IGNORE_INDEX = -100


@dataclass(frozen=True)
class PaddedBatch:
    """A batch padded to its longest sequence.

    Args:
        input_ids: (B, L) int64.
        attention_mask: (B, L) int64, 1 on real tokens.
        labels: (B,) int64 classes; or, for NER, (B, L) int64 with -100 on every token that is not
            the first piece of a labelled word; None where there are no labels.
        num_examples: Documents, or sentences, that the task loss is averaged over; None for B.
    """

    input_ids: Tensor
    attention_mask: Tensor
    labels: Tensor | None = None
    num_examples: int | None = None


@dataclass(frozen=True)
class ReferenceLosses:
    """Losses of one iteration, each taken before its phase's update."""

    task: float
    discriminator: float | None
    generator: float | None


def mean_pool(hidden: Tensor, attention_mask: Tensor) -> Tensor:
    """The paper's `h̄_θ(x)`: mean over all word pieces, [CLS] and [SEP] among them.

    Args:
        hidden: (B, L, H) floating point.
        attention_mask: (B, L) int64.

    Returns:
        (B, H) float32, or float64 where `hidden` is.
    """
    hidden = hidden.to(torch.promote_types(hidden.dtype, torch.float32))
    mask = attention_mask.unsqueeze(-1).to(hidden.dtype)
    return (hidden * mask).sum(dim=1) / mask.sum(dim=1)


class ReferenceFinetuner:
    """Algorithm 1 over a transformers encoder.

    Args:
        encoder: A transformers model whose output has `last_hidden_state` (B, L, H).
        task_head: Linear(H, K), the paper's W_T and b_T.
        discriminator: Linear(H, 1), the paper's w_D and b_D.
        task: "classification" or "ner".
        lr_task: η_T. lr_discriminator: η_D. lr_generator: η_G.
        betas, eps: Adam's decay rates and epsilon, the same in all three optimisers.
        adversarial: False leaves out lines 7 to 18: the baseline "BERT En-labels".
        autocast: dtype of `torch.autocast` around the encoder; None for none.
        relaxation: β of Wu, Winston, Kaushik and Lipton (ICML 2019), not of the paper: p(E = 1 | x)
            is σ(z) / (2 + β) in both losses; 0 for σ(z).
    """

    def __init__(
        self,
        encoder: nn.Module,
        task_head: nn.Linear,
        discriminator: nn.Linear,
        *,
        task: str,
        lr_task: float,
        lr_discriminator: float,
        lr_generator: float,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        adversarial: bool = True,
        autocast: torch.dtype | None = None,
        relaxation: float = 0.0,
    ) -> None:
        self.encoder, self.task_head, self.discriminator = encoder, task_head, discriminator
        self.task, self.adversarial, self.autocast = task, adversarial, autocast
        self.relaxation = relaxation

        def adam(parameters: Iterable[Parameter], lr: float) -> torch.optim.Adam:
            return torch.optim.Adam(parameters, lr=lr, betas=betas, eps=eps)

        # θ_T = {θ, W_T, b_T}, θ_D = {w_D, b_D}, θ_G = {θ}: T and G share θ, never their moments.
        self.adam_task = adam([*encoder.parameters(), *task_head.parameters()], lr_task)
        self.adam_discriminator = adam(discriminator.parameters(), lr_discriminator)
        self.adam_generator = adam(encoder.parameters(), lr_generator)

    def step(
        self,
        labeled: PaddedBatch,
        discriminator_draw: tuple[PaddedBatch, PaddedBatch] | None = None,
        generator_draw: tuple[PaddedBatch, PaddedBatch] | None = None,
    ) -> ReferenceLosses:
        """One iteration of the while loop.

        Args:
            labeled: English texts with their labels (line 2).
            discriminator_draw: (other language, English) of line 7.
            generator_draw: (other language, English) of line 13, drawn afresh.

        Returns:
            The three losses; the last two are None without the adversary.
        """
        loss_task = self.task_loss(labeled)  # lines 2-5
        self._update(loss_task, self.adam_task)  # line 6
        if not self.adversarial:
            return ReferenceLosses(loss_task.item(), None, None)
        assert discriminator_draw is not None and generator_draw is not None
        loss_discriminator = self.discriminator_loss(*discriminator_draw)  # lines 7-11
        self._update(loss_discriminator, self.adam_discriminator)  # line 12
        loss_generator = self.generator_loss(*generator_draw)  # lines 13-17
        self._update(loss_generator, self.adam_generator)  # line 18
        return ReferenceLosses(loss_task.item(), loss_discriminator.item(), loss_generator.item())

    def task_loss(self, batch: PaddedBatch) -> Tensor:
        """L_T: mean over documents; for NER summed over a sentence's words (section 3.1)."""
        assert batch.labels is not None
        hidden = self.hidden(batch)
        if self.task == "classification":
            h_en = mean_pool(hidden, batch.attention_mask)  # line 3
            return F.cross_entropy(self.task_head(h_en), batch.labels)  # lines 4, 5
        logits = self.task_head(hidden.to(self.task_head.weight.dtype))
        total = F.cross_entropy(
            logits.flatten(0, 1), batch.labels.flatten(), ignore_index=IGNORE_INDEX, reduction="sum"
        )
        return total / (batch.num_examples or len(batch.labels))

    def discriminator_loss(self, other: PaddedBatch, english: PaddedBatch) -> Tensor:
        """L_D = -log p_En - log(1 - p_L), the mean over each side (lines 8 to 11)."""
        _, log_not_p = self.log_probabilities(other)
        log_p, _ = self.log_probabilities(english)
        return -log_p.mean() - log_not_p.mean()

    def generator_loss(self, other: PaddedBatch, english: PaddedBatch) -> Tensor:
        """L_G = -log(1 - p_En) - log p_L: the labels flipped (lines 14 to 17)."""
        log_p, _ = self.log_probabilities(other)
        _, log_not_p = self.log_probabilities(english)
        return -log_not_p.mean() - log_p.mean()

    def log_probabilities(self, batch: PaddedBatch) -> tuple[Tensor, Tensor]:
        """log p and log(1 - p), (B,) each, where p is p(E = 1 | x)."""
        z = self.language_logit(batch)
        if self.relaxation == 0:
            # log σ(z), and log(1 - σ(z)) = log σ(-z), the latter without cancellation.
            return F.logsigmoid(z), F.logsigmoid(-z)
        bound = 2 + self.relaxation
        return F.logsigmoid(z) - math.log(bound), torch.log1p(-torch.sigmoid(z) / bound)

    def language_logit(self, batch: PaddedBatch) -> Tensor:
        """z = w_D · h̄ + b_D, (B,): the logit of p(E = 1 | x), "this is English"."""
        return self.discriminator(mean_pool(self.hidden(batch), batch.attention_mask)).squeeze(-1)

    def hidden(self, batch: PaddedBatch) -> Tensor:
        """h_θ(x): the encoder's last layer, (B, L, H)."""
        context: AbstractContextManager[object] = nullcontext()
        if self.autocast is not None:
            context = torch.autocast(batch.input_ids.device.type, dtype=self.autocast)
        with context:
            return self.encoder(
                input_ids=batch.input_ids, attention_mask=batch.attention_mask
            ).last_hidden_state

    def _update(self, loss: Tensor, optimizer: torch.optim.Adam) -> None:
        # Each phase starts from no gradient at all: backward fills in every parameter that the
        # loss reaches, and what this optimiser does not own must not leak into the next phase.
        for module in (self.encoder, self.task_head, self.discriminator):
            module.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
