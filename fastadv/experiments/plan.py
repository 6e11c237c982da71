"""What an experiment is made of: data, languages, seeds and settings, and the runs that follow."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from fastadv.config import FinetuneConfig, ResolvedConfig, TaskName
from fastadv.data import DataFile
from fastadv.recommended import resolved_for

BASELINE, ADVERSARIAL = "baseline", "adversarial"
SharesFrom = Literal["config", "estimate", "counted", "oracle"]
"""Where an arm's class shares are from: its settings, an estimate, some labelled texts of the
target language (few-shot), or all labels of its text (not allowed: a bound).
"""
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
class Arm:
    """One of the conditions that an experiment compares.

    Attributes:
        name: Its name in tables and folders.
        adversarial: Whether it has the discriminator and generator phases.
        shares: Where the class shares of its draws are from.
        config: Settings that differ from the experiment's.
    """

    name: str
    adversarial: bool = True
    shares: SharesFrom = "config"
    config: Mapping[str, Any] = field(default_factory=dict)


ARMS = (Arm(BASELINE, adversarial=False), Arm(ADVERSARIAL))
"""The paper's two."""


@dataclass(frozen=True)
class RunPlan:
    """One training run.

    Attributes:
        condition: The name of its arm, such as "baseline" (the paper's "BERT En-labels").
        languages: Targets that it is scored on; with the adversary it trains on their text.
        seed: `FinetuneConfig.seed`.
        own: Whether it is for one language alone.
    """

    condition: str
    languages: tuple[str, ...]
    seed: int
    own: bool = False

    @property
    def name(self) -> str:
        """A name that is unique in an experiment, also of the run's folder."""
        part = [self.languages[0]] if self.own else []
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
        arms: The conditions, the baseline first.
        together: Whether one run trains on the text of all targets; else each target has a run of
            its own, as in the paper.
        counted: Labelled texts of a target language whose classes are counted, for arms and
            matched predictions that are marked as few-shot; with them and with "oracle", labels of
            `unlabeled` are read, and used for nothing else. None leaves both out.
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
    arms: tuple[Arm, ...] = ARMS
    together: bool = False
    counted: int | None = None

    def __post_init__(self) -> None:
        arms = [arm.name for arm in self.arms]
        if not arms or arms[0] != BASELINE or self.arms[0].adversarial or len({*arms}) < len(arms):
            raise ValueError(
                f"found the arms {', '.join(arms) or 'none'}, expected {BASELINE!r} without the "
                "adversary first, and each name once"
            )
        for arm in self.arms:
            if self.counted is None and arm.shares in ("counted", "oracle"):
                raise ValueError(
                    f"arm {arm.name}: shares are {arm.shares}, expected the experiment to say how "
                    "many labelled texts may be counted: counted"
                )
            dataclasses.replace(self.config, **arm.config)
        if self.counted is not None and self.counted < 1:
            raise ValueError(f"counted is {self.counted}, expected at least 1")
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
        """Every run: one baseline per seed, and for each other arm one run per seed and target, as
        in the paper's tables, whose baseline is the same for all languages; or one per seed.
        """
        names = tuple(target.language for target in self.targets)
        found: list[RunPlan] = []
        for arm in self.arms:
            own = arm.adversarial and not self.together
            for languages in [(name,) for name in names] if own else [names]:
                found += [RunPlan(arm.name, languages, seed, own) for seed in self.seeds]
        return found

    def arm(self, name: str) -> Arm:
        return next(arm for arm in self.arms if arm.name == name)

    def target(self, language: str) -> Target:
        return next(target for target in self.targets if target.language == language)

    def settings(self, run: RunPlan) -> FinetuneConfig:
        """The settings of one run."""
        arm = self.arm(run.condition)
        common = {
            "seed": run.seed,
            "adversarial": arm.adversarial,
            "source_language": self.source.language,
            # The origin of Figure 2, and translations before finetuning; other arms have neither.
            "eval_at_start": self.arms == ARMS,
            "mean_weights": True,
        }
        if arm.shares == "estimate":
            common["class_shares"] = "estimate"
        return dataclasses.replace(self.config, **(dict(arm.config) | common))

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
        # Plans of before there were arms have the paper's two.
        values["arms"] = tuple(Arm(**arm) for arm in found["arms"]) if "arms" in found else ARMS
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
