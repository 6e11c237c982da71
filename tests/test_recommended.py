"""Settings that fit an encoder: who gets them, who does not, and what is said of it."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pytest
import tiny
import yaml

from fastadv import AdversarialFinetuner, FinetuneConfig
from fastadv import recommended as module
from fastadv.config import TASK_SETTINGS, TaskName
from fastadv.experiments.demo import RECIPES
from fastadv.model_io.packaged import ALIASES, MODELS
from fastadv.recommended import RECOMMENDED, recommended, resolved_for

pytestmark = pytest.mark.usefixtures("one_thread")
RATES = ("lr_task", "lr_discriminator", "lr_generator")
RESULTS = Path(__file__).parents[1] / "docs" / "results"


@pytest.fixture(autouse=True)
def nothing_said_yet() -> Iterator[None]:
    module._said.clear()
    yield
    module._said.clear()


def tuner_of(model: Any = "fastadv-mini", **changes: Any) -> AdversarialFinetuner:
    config = FinetuneConfig(max_length=16, **changes)
    return AdversarialFinetuner(model, labels=tiny.LABELS, config=config, device="cpu")


def rates(config: FinetuneConfig) -> tuple[float | None, ...]:
    return config.lr_task, config.lr_discriminator, config.lr_generator


def test_every_packaged_encoder_has_an_entry_for_every_task() -> None:
    assert RECOMMENDED.keys() == ALIASES.keys()
    fields = {field.name: field for field in dataclasses.fields(FinetuneConfig)}
    for tasks in RECOMMENDED.values():
        assert set(tasks) == set(get_args(TaskName))
        for name in (name for settings in tasks.values() for name in settings):
            assert fields[name].default is None, "only what is left open can be filled"


@pytest.mark.parametrize(
    ("model", "task", "folder"),
    [
        ("fastadv-mini", "classification", "debian_topics-fastadv-mini"),
        ("fastadv-mini", "ner", "universal_ner-fastadv-mini"),
        ("e5-small", "classification", "debian_topics-e5-small"),
    ],
)
def test_rates_are_those_of_the_results(model: str, task: TaskName, folder: str) -> None:
    plan = yaml.safe_load((RESULTS / folder / "plan.yaml").read_text("utf-8"))
    assert plan["model"] == model and plan["task"] == task
    assert recommended(model, task) == {name: plan["config"][name] for name in RATES}


def test_rates_of_e5_small_for_names_are_those_of_the_demo() -> None:
    defaults = TASK_SETTINGS["ner"].defaults
    expected = {name: RECIPES["ner"].factor * defaults[name] for name in RATES}
    assert recommended("e5-small", "ner") == pytest.approx(expected)


def test_what_is_given_goes_before_what_fits_and_that_before_the_paper() -> None:
    config = FinetuneConfig(lr_generator=1e-9)
    mini = resolved_for(config, "classification", "fastadv-mini")
    assert rates(mini) == (2e-4, 5e-3, 1e-9) and mini.max_length == 256
    paper = dataclasses.replace(config, recipe="paper")
    assert rates(resolved_for(paper, "classification", "fastadv-mini")) == (2e-6, 5e-5, 1e-9)
    for other in ("google-bert/bert-base-multilingual-cased", MODELS / "fastadv-mini", object()):
        assert rates(resolved_for(config, "classification", other)) == (2e-6, 5e-5, 1e-9)


def test_an_unknown_recipe_is_refused() -> None:
    with pytest.raises(ValueError, match="recipe is 'ours', expected 'paper' or 'recommended'"):
        FinetuneConfig(recipe="ours")  # type: ignore[arg-type]


def test_a_finetuner_has_them_and_says_so_once(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="fastadv")
    assert rates(tuner_of(lr_discriminator=1e-4).config) == (2e-4, 1e-4, 2e-5)
    tuner_of(adversarial=False)
    assert [r.getMessage() for r in caplog.records if r.name == "fastadv"] == [
        "fastadv-mini: lr_task 0.0002, lr_generator 2e-05, recommended for this encoder; "
        "--recipe paper for the paper's"
    ]


@pytest.mark.parametrize(
    "settled",
    [
        {"recipe": "paper"},
        {"lr_task": 1e-4, "adversarial": False},
        {"lr_task": 1e-4, "lr_discriminator": 1e-4, "lr_generator": 1e-4},
    ],
)
def test_nothing_is_said_where_nothing_is_chosen(
    settled: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="fastadv")
    tuner_of(**settled)
    assert "recommended" not in caplog.text


def test_a_saved_model_keeps_its_rates_and_is_no_packaged_one(tmp_path: Path) -> None:
    tuner_of(lr_task=3e-4).save_pretrained(tmp_path / "model")
    again = AdversarialFinetuner.from_pretrained(tmp_path / "model", device="cpu")
    assert rates(again.config) == (3e-4, 5e-3, 2e-5)
    # As the start of another run it is a folder like others.
    assert rates(tuner_of(tmp_path / "model").config) == (2e-6, 5e-5, 2e-8)


def test_a_run_at_the_papers_rates_resumes_with_the_papers_recipe(tmp_path: Path) -> None:
    """A checkpoint of before there were recommended rates holds the paper's, as numbers."""
    path = tmp_path / "c.safetensors"
    tuner_of(recipe="paper").save_checkpoint(path)
    said = (
        r"lr_discriminator was 5e-05 in that run and is 0.005 now, expected the same to resume: "
        r"5e-05 is the paper's, which recipe 'paper' \(--recipe paper\) gives"
    )
    with pytest.raises(ValueError, match=said):
        tuner_of().load_checkpoint(path)
    tuner_of(recipe="paper").load_checkpoint(path)
    # What counts is the numbers, not where they are from.
    tuner_of(lr_task=2e-6, lr_discriminator=5e-5, lr_generator=2e-8).load_checkpoint(path)
