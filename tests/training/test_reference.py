"""The reference against numbers worked out by hand."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from fastadv.reference import PaddedBatch, ReferenceFinetuner, mean_pool


class Lookup(nn.Module):
    """An encoder of one number a token: its embedding is its output."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(4, 1)
        with torch.no_grad():
            self.table.weight.copy_(torch.tensor([[9.0], [1.0], [2.0], [-3.0]]))

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> SimpleNamespace:
        return SimpleNamespace(last_hidden_state=self.table(input_ids))


def reference(task: str = "classification", **changes: object) -> ReferenceFinetuner:
    head, discriminator = nn.Linear(1, 2), nn.Linear(1, 1)
    with torch.no_grad():
        head.weight.copy_(torch.tensor([[1.0], [-1.0]]))
        head.bias.copy_(torch.tensor([0.5, 0.0]))
        discriminator.weight.fill_(2.0)
        discriminator.bias.fill_(-1.0)
    rates = {"lr_task": 0.1, "lr_discriminator": 0.01, "lr_generator": 0.001} | changes
    return ReferenceFinetuner(Lookup(), head, discriminator, task=task, **rates)


# Pieces 1 and 2 average to 1.5; piece 3 alone is -3. Id 0 is padding, and would add 9.
BOTH = PaddedBatch(
    torch.tensor([[1, 2], [3, 0]]), torch.tensor([[1, 1], [1, 0]]), torch.tensor([0, 1])
)
FIRST = PaddedBatch(torch.tensor([[1, 2]]), torch.tensor([[1, 1]]))
SECOND = PaddedBatch(torch.tensor([[3]]), torch.tensor([[1]]))

# float32 arithmetic on numbers near 1: a few roundings of 6e-8.
EXACT = {"abs": 1e-6}


def test_mean_pool_leaves_padding_out() -> None:
    hidden = Lookup()(BOTH.input_ids, BOTH.attention_mask).last_hidden_state
    assert mean_pool(hidden, BOTH.attention_mask).tolist() == [[1.5], [-3.0]]
    assert mean_pool(hidden.bfloat16(), BOTH.attention_mask).dtype == torch.float32


def test_task_loss_of_documents() -> None:
    # Logits (2, -1.5) with class 0, and (-2.5, 3) with class 1.
    expected = (math.log1p(math.exp(-3.5)) + math.log1p(math.exp(-5.5))) / 2
    assert reference().task_loss(BOTH).item() == pytest.approx(expected, **EXACT)


def test_task_loss_of_words_is_summed_and_divided_by_sentences() -> None:
    labels = torch.tensor([[0, -100], [1, -100]])
    batch = PaddedBatch(BOTH.input_ids, BOTH.attention_mask, labels, num_examples=1)
    # Word "1" has logits (1.5, -1) with class 0, word "3" (-2.5, 3) with class 1; one sentence.
    expected = math.log1p(math.exp(-2.5)) + math.log1p(math.exp(-5.5))
    assert reference("ner").task_loss(batch).item() == pytest.approx(expected, **EXACT)


def test_discriminator_and_generator_losses() -> None:
    # English is FIRST with z = 2 * 1.5 - 1 = 2; the other is SECOND with z = 2 * -3 - 1 = -7.
    loss_d = math.log1p(math.exp(-2)) + math.log1p(math.exp(-7))
    loss_g = math.log1p(math.exp(2)) + math.log1p(math.exp(7))
    assert reference().discriminator_loss(SECOND, FIRST).item() == pytest.approx(loss_d, **EXACT)
    assert reference().generator_loss(SECOND, FIRST).item() == pytest.approx(loss_g, **EXACT)


def test_relaxed_losses() -> None:
    # As above, with p = 1 / (1 + e^-z) / 2.5.
    english, other = 1 / (1 + math.exp(-2)) / 2.5, 1 / (1 + math.exp(7)) / 2.5
    loss_d = -math.log(english) - math.log(1 - other)
    loss_g = -math.log(1 - english) - math.log(other)
    relaxed = reference(relaxation=0.5)
    assert relaxed.discriminator_loss(SECOND, FIRST).item() == pytest.approx(loss_d, **EXACT)
    assert relaxed.generator_loss(SECOND, FIRST).item() == pytest.approx(loss_g, **EXACT)


def test_first_step_moves_each_parameter_by_its_learning_rates() -> None:
    """Adam's first update is the learning rate against the gradient's sign."""
    tuner = reference()
    before = tuner.encoder.table.weight.detach().clone()
    w_d = tuner.discriminator.weight.item()
    tuner.step(BOTH, (SECOND, FIRST), (SECOND, FIRST))
    # T pushes pieces 1 and 2 (class 0, weights 1 and -1) up by 0.1 and piece 3 down; then D moves
    # w_D up by 0.01, which tells 1.5 from -3 better; then G, labels flipped, pushes the English
    # pieces down and the other up by 0.001. The padding's row has no gradient at all.
    expected = before + torch.tensor([[0.0], [0.1 - 0.001], [0.1 - 0.001], [-0.1 + 0.001]])
    # Adam's eps of 1e-8 beside gradients of 1e-3 and more takes 1e-5 of a step away.
    torch.testing.assert_close(tuner.encoder.table.weight.detach(), expected, atol=2e-6, rtol=0)
    assert tuner.discriminator.weight.item() == pytest.approx(w_d + 0.01, abs=2e-6)


def test_baseline_leaves_the_discriminator_alone() -> None:
    tuner = reference(adversarial=False)
    losses = tuner.step(BOTH)
    assert losses.discriminator is None and losses.generator is None
    assert tuner.discriminator.weight.item() == 2.0
