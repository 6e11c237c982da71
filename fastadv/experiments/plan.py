"""What an experiment is made of: data, languages, seeds and settings, and the runs that follow."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastadv.config import FinetuneConfig, ResolvedConfig, TaskName
from fastadv.data import DataFile
from fastadv.model_io.recommended import resolved_for

BASELINE, ADVERSARIAL = "baseline", "adversarial"
SEEDS = (0, 1, 2, 3)
"""As many runs as the paper averages over (section 3.1)."""


@dataclass(frozen=True)
class Source:
    """The labelled language.

    Attributes:
        language: Its name in tables, and in `FinetuneConfig.source_language`.
        train: Labelled examples.
        dev: Labelled examples that choose a step (paper, section 3.1); their text is also what the
            discriminator is tried on.
        test: Labelled examples.
    """

    language: str
    train: DataFile
    dev: DataFile
    test: DataFile


@dataclass(frozen=True)
class Target:
    """A language without labels.

    Attributes:
        language: Its name in tables.
        unlabeled: Text that the adversary trains on and that criteria look at; labels are dropped.
        test: Labelled examples, scored and used for nothing else.
        heldout: Text on which the discriminator is tried; labels are dropped. None sets aside
            every tenth text of `unlabeled`.
        translations: Line-aligned texts of the source language and their translations (paper,
            section 3.4).
    """

    language: str
    unlabeled: DataFile
    test: DataFile
    heldout: DataFile | None = None
    translations: tuple[DataFile, DataFile] | None = None


@dataclass(frozen=True)
class RunPlan:
    """One training run.

    Attributes:
        condition: "baseline" (the paper's "BERT En-labels") or "adversarial".
        languages: Targets that it is scored on; an adversarial run has one, and trains on its text.
        seed: `FinetuneConfig.seed`.
    """

    condition: str
    languages: tuple[str, ...]
    seed: int

    @property
    def name(self) -> str:
        """A name that is unique in an experiment, also of the run's folder."""
        part = [self.languages[0]] if self.condition == ADVERSARIAL else []
        return "-".join([self.condition, *part, str(self.seed)])


@dataclass(frozen=True)
class ExperimentPlan:
    """Everything that decides what an experiment's results are.

    Attributes:
        name: The experiment's name, for titles.
        task: The name of the task.
        model: Hub id, folder or alias.
        source: The labelled language.
        targets: The other languages, in the order of the tables' columns.
        seeds: The seeds, one run each.
        config: Settings of every run, except `seed`, `adversarial` and `source_language`.
        threads: Threads of a run on the CPU; None for as many as there are cores for it.
        paper: "mldoc" or "conll" where the paper has numbers to show next to ours.
    """

    name: str
    task: TaskName
    model: str
    source: Source
    targets: tuple[Target, ...]
    seeds: tuple[int, ...]
    config: FinetuneConfig
    threads: int | None = None
    paper: str | None = None

    def __post_init__(self) -> None:
        names = [target.language for target in self.targets]
        if not names or len({*names, self.source.language}) <= len(names):
            raise ValueError(
                f"found the target languages {', '.join(names) or 'none'} beside the source "
                f"{self.source.language}, expected at least one, each once"
            )
        if not self.seeds or len(set(self.seeds)) < len(self.seeds) or min(self.seeds) < 0:
            raise ValueError(
                f"found the seeds {list(self.seeds)}, expected at least one, each once and not "
                "negative"
            )
        if self.config.selection != "english_dev" or self.config.mean_weights:
            raise ValueError(
                "found selection or mean_weights in config, expected neither: an experiment "
                "measures every criterion and the mean of the weights"
            )
        if self.threads is not None and self.threads < 1:
            raise ValueError(f"found {self.threads} threads, expected at least 1")

    def runs(self) -> list[RunPlan]:
        """Every run: one baseline per seed, and one adversarial run per seed and target, as in the
        paper's tables, whose baseline is the same for all languages.
        """
        names = tuple(target.language for target in self.targets)
        found = [RunPlan(BASELINE, names, seed) for seed in self.seeds]
        found += [RunPlan(ADVERSARIAL, (name,), seed) for name in names for seed in self.seeds]
        return found

    def target(self, language: str) -> Target:
        return next(target for target in self.targets if target.language == language)

    def settings(self, run: RunPlan) -> FinetuneConfig:
        """The settings of one run."""
        return dataclasses.replace(
            self.config,
            seed=run.seed,
            adversarial=run.condition == ADVERSARIAL,
            source_language=self.source.language,
            eval_at_start=True,
            mean_weights=True,
        )

    def resolved(self) -> ResolvedConfig:
        """The settings with what is left open filled in, as the runs have them."""
        return resolved_for(self.config, self.task, self.model)

    def narrowed(self, languages: Sequence[str], seeds: Sequence[int]) -> ExperimentPlan:
        """The plan with only these targets and seeds; an empty sequence stands for all of them.

        Raises:
            ValueError: There is no such target.
        """
        known = [target.language for target in self.targets]
        for name in languages:
            if name not in known:
                raise ValueError(f"found the language {name!r}, expected one of {', '.join(known)}")
        targets = tuple(t for t in self.targets if not languages or t.language in languages)
        return dataclasses.replace(self, targets=targets, seeds=tuple(seeds) or self.seeds)

    def as_json(self) -> dict[str, Any]:
        """What `of_json` takes."""
        return _plain(dataclasses.asdict(self))

    @classmethod
    def of_json(cls, found: Mapping[str, Any]) -> ExperimentPlan:
        """The plan that `as_json` was called on."""
        values = dict(found)
        source = found["source"]
        files = (_file(source[name]) for name in ("train", "dev", "test"))
        values["source"] = Source(source["language"], *files)
        values["targets"] = tuple(_target(target) for target in found["targets"])
        values["seeds"] = tuple(found["seeds"])
        # Before there was a recipe, fields that were left open had the paper's values.
        values["config"] = FinetuneConfig(**{"recipe": "paper", **found["config"]})
        return cls(**values)


def _target(found: Mapping[str, Any]) -> Target:
    pair, heldout = found["translations"], found["heldout"]
    return Target(
        found["language"],
        _file(found["unlabeled"]),
        _file(found["test"]),
        None if heldout is None else _file(heldout),
        None if pair is None else (_file(pair[0]), _file(pair[1])),
    )


def _file(found: Mapping[str, Any]) -> DataFile:
    return DataFile(**found)


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _plain(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return str(value) if isinstance(value, Path) else value
