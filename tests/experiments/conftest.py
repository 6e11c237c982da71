"""A tiny model for experiments, and one that was done."""

from __future__ import annotations

from pathlib import Path

import made_corpora
import pytest
import tiny

from fastadv.experiments.experiment import Experiment
from fastadv.experiments.plan_file import read_plan


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("experiments_model")
    return tiny.tiny_folder(folder, max_position_embeddings=128)


@pytest.fixture(scope="session")
def written(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """experiment.yaml with its data beside it."""
    return made_corpora.written_down(tmp_path_factory.mktemp("written") / "data", tiny_model)


@pytest.fixture(scope="session")
def unbroken(written: Path, tmp_path_factory: pytest.TempPathFactory) -> Experiment:
    """The experiment done in one go."""
    experiment = Experiment(tmp_path_factory.mktemp("unbroken") / "out", read_plan(written))
    experiment.go(quiet=True)
    return experiment
