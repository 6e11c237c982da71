"""Defaults that cite the paper, and settings that cannot be meant."""

from __future__ import annotations

import pytest

from fastadv import FinetuneConfig


def test_defaults_are_the_papers() -> None:
    """Sections 3.2 and 3.3 of the paper."""
    documents = FinetuneConfig().resolved("classification")
    assert documents.lr_task == 2e-6
    assert documents.lr_discriminator == 5e-5
    assert documents.lr_generator == 2e-8
    assert (documents.max_length, documents.batch_size) == (256, 32)
    words = FinetuneConfig().resolved("ner")
    assert words.lr_task == 6e-6
    assert words.lr_discriminator == 5e-4
    assert words.lr_generator == 6e-8
    assert (words.max_length, words.window_overlap) == (128, 32)
    assert (words.beta1, words.beta2, words.eps) == (0.9, 0.999, 1e-8)
    assert words.weight_decay == 0 and words.max_grad_norm is None and words.dropout is None
    assert words.relaxation == 0


def test_given_values_win_over_the_tasks() -> None:
    config = FinetuneConfig(lr_task=1e-3, max_length=40).resolved("ner")
    assert (config.lr_task, config.max_length, config.window_overlap) == (1e-3, 40, 10)
    assert config.lr_generator == 6e-8


@pytest.mark.parametrize(
    "change",
    [
        {"steps": 0},
        {"batch_size": 0},
        {"lr_task": -1e-6},
        {"lr_generator": float("nan")},
        {"relaxation": -0.5},
        {"relaxation": float("nan")},
        {"relaxation": float("inf")},
        {"beta2": 1.0},
        {"dropout": 1.0},
        {"eps": 0.0},
        {"max_grad_norm": 0.0},
        {"max_length": 2},
        {"precision": "fp8"},
        {"encoder": "fast"},
        {"seed": -1},
        {"window_overlap": -1},
    ],
)
def test_settings_out_of_range_are_refused_by_name(change: dict) -> None:
    [(name, value)] = change.items()
    with pytest.raises(ValueError, match=f"{name} is {value!r}, expected "):
        FinetuneConfig(**change)


def test_windows_must_advance() -> None:
    with pytest.raises(ValueError, match="window_overlap is 30, expected less than"):
        FinetuneConfig(max_length=32, window_overlap=30).resolved("ner")
