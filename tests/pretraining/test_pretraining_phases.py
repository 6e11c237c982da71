"""The adversary beside masked-language modelling."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tiny_pretraining import prepared, settings
from torch.nn import functional as F

from fastadv.pretraining.pretrainer import Pretrainer
from fastadv.pretraining.run import PretrainingRun
from fastadv.training.trainer import Trainer

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prepared(tmp_path_factory.mktemp("run"), settings())


def pretrainer(folder: Path, adversary: str) -> Pretrainer:
    config = settings(adversary=adversary, lr_discriminator=0.1, lr_generator=0.01)
    return PretrainingRun(folder, True, "cpu", config).pretrainer


def snapshot(ours: Pretrainer) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in ours.model.named_parameters()}


def changed(before: dict[str, torch.Tensor], ours: Pretrainer) -> set[str]:
    parts = {"encoder", "task_head", "discriminator"}
    now = snapshot(ours)
    return {p for p in parts if any(not torch.equal(now[n], before[n])
                                    for n in now if n.startswith(p))}  # fmt: skip


@pytest.mark.parametrize("adversary", ["source", "all"])
def test_each_phase_changes_what_it_owns(folder: Path, adversary: str) -> None:
    ours = pretrainer(folder, adversary)
    trainer = ours.trainer
    masked, draw_d, draw_g = ours.prepare(0)
    assert draw_d is not None and draw_g is not None
    before = snapshot(ours)
    trainer.task_step(masked)
    assert changed(before, ours) == {"encoder", "task_head"}
    pooled_d, pooled_g = trainer.pooled_draws(draw_d, draw_g)
    before = snapshot(ours)
    trainer._discriminator_phase(draw_d, pooled_d)
    assert changed(before, ours) == {"discriminator"}
    before = snapshot(ours)
    trainer._generator_phase(draw_g, pooled_g)
    assert changed(before, ours) == {"encoder"}


def test_losses_of_all_languages_by_hand(folder: Path) -> None:
    ours = pretrainer(folder, "all")
    draw = ours.prepare(0)[1]
    assert draw is not None and draw.languages is not None
    pooled = ours.model.pooled(draw)
    head = ours.model.discriminator
    p = torch.softmax(head(pooled), 1).gather(1, draw.languages[:, None])[:, 0]
    wanted_d, wanted_g = [], []
    for language in draw.languages.unique():
        own = p[draw.languages == language]
        wanted_d.append(-own.log().mean())
        wanted_g.append(-(1 - own).log().mean())
    loss, accuracy, _ = ours.trainer.discriminator_gradients(draw, pooled.detach())
    torch.testing.assert_close(loss, torch.stack(wanted_d).mean())
    right = (head(pooled).argmax(1) == draw.languages).float().mean()
    assert accuracy == right
    loss, _ = ours.trainer.generator_gradients(draw, pooled)
    torch.testing.assert_close(loss, torch.stack(wanted_g).mean())


def test_for_two_languages_the_generator_reads_flipped_labels(folder: Path) -> None:
    ours = pretrainer(folder, "all")
    draw = ours.prepare(0)[2]
    assert draw is not None and draw.languages is not None
    with torch.no_grad():
        # A third language that is never likely.
        ours.model.discriminator.bias[2] = -1e4
    two = draw.languages.clamp(max=1)
    batch = replace(draw, languages=two)
    hidden = ours.model.pooled(batch)
    logits = ours.model.discriminator(hidden)[:, :2]
    flipped = F.cross_entropy(logits, 1 - two, reduction="none")
    wanted = torch.stack([flipped[two == k].mean() for k in range(2)]).mean()
    loss, _ = ours.trainer.generator_gradients(batch, hidden)
    torch.testing.assert_close(loss, wanted.detach())


def test_draws_are_half_source_language_and_not_masked(folder: Path) -> None:
    ours = pretrainer(folder, "source")
    masked, draw_d, draw_g = ours.prepare(5)
    assert draw_d is not None and draw_g is not None
    assert draw_d.english is not None and 0 < draw_d.english.float().mean() < 1
    mask_id = ours.corpus.special["mask"]
    assert not (draw_d.input_ids == mask_id).any() and (masked.input_ids == mask_id).any()
    assert not torch.equal(draw_d.input_ids[:20], draw_g.input_ids[:20])


def test_a_run_without_the_adversary_has_the_same_masked_batches(folder: Path) -> None:
    plain, adversarial = pretrainer(folder, "none"), pretrainer(folder, "all")
    assert plain.prepare(3)[1:] == (None, None)
    assert torch.equal(plain.prepare(3)[0].input_ids, adversarial.prepare(3)[0].input_ids)


@pytest.mark.parametrize("adversary", ["none", "all"])
def test_updates_decided_on_the_device_are_those_of_the_host(folder: Path, adversary: str) -> None:
    """As on a GPU: parameters in one buffer, the word table's gradient dense."""
    config = settings(adversary=adversary, eps=1e-4, dropout=0.1)
    host, device = (PretrainingRun(folder, True, "cpu", config).pretrainer for _ in range(2))
    device.model.encoder.embeddings.word.sparse = False
    device.trainer = Trainer(device.model, host.trainer.config, capturable=True)
    assert device.model.encoder.flat is not None and device.trainer.deferred is None
    for step in range(5):
        losses = [ours.step(ours.prepare(step)) for ours in (host, device)]
        torch.testing.assert_close(losses[0].task, losses[1].task, rtol=1e-5, atol=0)
    device.trainer.check()
    for name, weight in snapshot(host).items():
        # Gradients that differ by a rounding, over some steps of 1e-3.
        found = snapshot(device)[name]
        torch.testing.assert_close(found, weight, rtol=3e-6, atol=3e-7, msg=name)


def test_settings_that_do_not_fit_the_text_are_refused(folder: Path) -> None:
    with pytest.raises(ValueError, match="source_language 'xx', expected one of en, de, fr"):
        PretrainingRun(folder, True, "cpu", settings(adversary="source", source_language="xx"))
    with pytest.raises(ValueError, match="max_length is 16, expected 24"):
        PretrainingRun(folder, True, "cpu", settings(max_length=16))
