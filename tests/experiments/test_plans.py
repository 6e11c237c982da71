"""From folders and files to plans, and `fastadv experiment` over the paper's corpora."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import made_corpora
import pytest
import yaml

from fastadv.cli import main
from fastadv.config import FinetuneConfig
from fastadv.data import as_documents
from fastadv.experiments.corpora import corpus_plan
from fastadv.experiments.experiment import PLAN, Experiment
from fastadv.experiments.plan import ExperimentPlan
from fastadv.experiments.plan_file import read_plan

SMALL = [
    *("--config.steps", "2"),
    *("--config.eval_every", "1"),
    *("--config.batch_size", "3"),
    *("--config.max_length", "24"),
    *("--config.precision", "fp32"),
]


def test_mldoc_as_the_paper_takes_it(tmp_path: Path) -> None:
    folder = made_corpora.mldoc(tmp_path / "mldoc")
    plan = corpus_plan("mldoc", folder)
    assert plan.config == FinetuneConfig()
    assert plan.seeds == (0, 1, 2, 3)
    assert [target.language for target in plan.targets] == ["de", "ja"]
    assert Path(plan.source.train.path).name == "english.train.1000"
    assert Path(plan.target("de").unlabeled.path).name == "german.train.10000"
    assert len(plan.runs()) == 4 + 2 * 4
    assert as_documents(plan.target("de").test)[-1].text == made_corpora.GERMAN_TEXT


@pytest.mark.parametrize(("what", "languages"), [("mldoc", "de ja"), ("conll", "de es nl")])
def test_the_command_over_a_corpus(
    what: str, languages: str, tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = getattr(made_corpora, what)(tmp_path / what)
    output = tmp_path / "out"
    fixed = ["experiment", what, "--data", str(folder), "--output", str(output)]
    status = main([*fixed, "--model", str(tiny_model), "--seed", "0", "--quiet", *SMALL])
    printed = capsys.readouterr()
    assert status == 0, printed.err
    # Of the corpora's quirks none is worth a word: latin-1 is said once a file.
    assert all("latin-1" in line for line in printed.err.splitlines())
    assert "BERT En-labels + Adv. (paper)" in printed.out
    results = [json.loads(line) for line in (output / "results.jsonl").read_text().splitlines()]
    assert [line["run"] for line in results] == [
        "baseline-0",
        *(f"adversarial-{language}-0" for language in languages.split()),
    ]
    assert {"report.html", "tables.md", "scores.csv"} <= {path.name for path in output.iterdir()}
    figures = {path.name for path in (output / "figures").iterdir()}
    assert {f"scores_{language}.png" for language in languages.split()} <= figures


def test_missing_files_are_named(tmp_path: Path) -> None:
    folder = made_corpora.mldoc(tmp_path / "mldoc")
    with pytest.raises(ValueError, match=r"french\.train\.10000: found no such file"):
        corpus_plan("mldoc", folder, languages=["fr"])
    with pytest.raises(ValueError, match="MLDoc has no 'nl', expected one of de, es"):
        corpus_plan("mldoc", folder, languages=["nl"])
    with pytest.raises(ValueError, match=r"expected such as deu\.train"):
        corpus_plan("conll", folder)
    (folder / "english.dev").unlink()
    with pytest.raises(ValueError, match=r"english\.dev: found no such file"):
        corpus_plan("mldoc", folder)


def test_a_plan_comes_back_from_json(written: Path) -> None:
    plan = read_plan(written)
    assert ExperimentPlan.of_json(json.loads(json.dumps(plan.as_json()))) == plan
    assert plan.target("ja").unlabeled.format == "documents"


def test_an_experiment_of_before_there_was_a_recipe(written: Path, tmp_path: Path) -> None:
    """Rates left open were the paper's; whether they are today's depends on the encoder alone."""

    def older(plan: ExperimentPlan, name: str) -> Path:
        folder = tmp_path / name
        Experiment(folder, plan)
        found = json.loads((folder / PLAN).read_text("utf-8"))
        assert found["config"].pop("recipe") == "recommended"
        (folder / PLAN).write_text(json.dumps(found), "utf-8")
        return folder

    plan = dataclasses.replace(read_plan(written), config=FinetuneConfig(steps=4))
    assert Experiment(older(plan, "other"), plan).plan == plan
    mini = dataclasses.replace(plan, model="fastadv-mini")
    folder = older(mini, "mini")
    with pytest.raises(ValueError, match="the experiment there differs in config"):
        Experiment(folder, mini)
    paper = dataclasses.replace(mini, config=dataclasses.replace(mini.config, recipe="paper"))
    Experiment(folder, paper)
    assert Experiment.of_folder(folder).plan.resolved().lr_task == 2e-6


def test_a_recipe_may_stand_beside_a_file(
    written: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plans: list[ExperimentPlan] = []
    written = changed(written, tmp_path, "config", {"steps": 4})
    monkeypatch.setattr(Experiment, "go", lambda self, jobs, quiet: plans.append(self.plan))
    for number, more in enumerate(([], ["--recipe", "paper"])):
        output = ["--output", str(tmp_path / str(number)), "--model", "fastadv-mini"]
        assert main(["experiment", str(written), *output, *more]) == 0
    assert [plan.resolved().lr_task for plan in plans] == [2e-4, 2e-6]


def changed(written: Path, tmp_path: Path, key: str, value: object) -> Path:
    found = yaml.safe_load(written.read_text())
    if value is None:
        del found[key]
    else:
        found[key] = value
    path = tmp_path / "changed.yaml"
    path.write_text(yaml.safe_dump(found))
    return path


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("model", None, "found no model"),
        ("colour", "red", "found the key 'colour', expected one of arms, config"),
        ("targets", {}, "found the target languages none"),
        ("targets", {"de": {"test": "x"}}, "target de: found no unlabeled"),
        ("targets", {"en": {"test": "x", "unlabeled": "y"}}, "target languages en"),
        ("targets", ["de"], "targets: found list, expected a mapping"),
        ("seeds", [1, 1], "each once"),
        ("seeds", "0", "expected a list of whole numbers"),
        ("threads", 0, "found 0 threads"),
        ("config", {"speed": 1}, "speed"),
        ("config", {"steps": 0}, "steps is 0"),
        ("config", {"selection": "entropy"}, "expected neither: an experiment measures every"),
        ("config", {"mean_weights": True}, "expected neither: an experiment measures every"),
        ("source", {"language": "en"}, "source: found no"),
    ],
)
def test_a_plan_that_cannot_be_is_refused_by_name(
    key: str, value: object, said: str, written: Path, tmp_path: Path
) -> None:
    path = changed(written, tmp_path, key, value)
    with pytest.raises(ValueError, match=said) as refusal:
        read_plan(path)
    assert str(refusal.value).startswith(f"{path}: ")


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["news"], "found 'news', expected mldoc, conll or a FILE.yaml"),
        (["mldoc"], "found no --data"),
        (["nowhere.yaml"], "nowhere.yaml: expected an experiment in YAML"),
        (["WRITTEN", "--config.steps", "5"], "found --config beside"),
        (["WRITTEN", "--translations", "de=a,b"], "found --translations beside"),
        (["WRITTEN", "--language", "fr"], "found the language 'fr', expected one of de, ja"),
        (["WRITTEN", "--seed", "x"], "--seed is 'x'"),
        (["mldoc", "--data", ".", "--translations", "de=a"], "expected LANG=SOURCE,TARGET"),
    ],
)
def test_mistakes_are_one_line_and_leave_no_folder(
    more: list[str],
    said: str,
    written: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    arguments = [str(written) if part == "WRITTEN" else part for part in more]
    assert main(["experiment", *arguments, "--output", "out"]) == 2
    printed = capsys.readouterr()
    assert said in printed.err and len(printed.err.splitlines()) == 1
    assert not Path("out").exists()
