"""`fastadv train`."""

from __future__ import annotations

import json
import logging
import os
import re
import threading
import weakref
from pathlib import Path

import pytest
import yaml
from cli_helpers import contents, train

import fastadv.cli.train
import fastadv.run.fit
from fastadv import recommended
from fastadv.cli import main
from fastadv.cli.summary import summary
from fastadv.records.history import History

pytestmark = pytest.mark.usefixtures("one_thread")
SCORED = ["--dev", "en.train", "--test", "en=en.train", "--test", "de=en.train"]


def records(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def accuracy(evaluation: dict, name: str) -> str:
    return f"{evaluation['test'][name]['accuracy']:.4f}"


def rows(printed: str) -> list[list[str]]:
    """The cells of the table that a command printed."""
    lines = printed.splitlines()
    rule = next(k for k, line in enumerate(lines) if set(line) <= {"-", " "} and line)
    return [line.split() for line in lines[rule + 1 :] if not line.startswith(("curves", "model"))]


def test_writes_a_run_and_its_table(
    model: Path, corpus: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    more = ["--config.steps", "4", "--config.eval_every", "2"]
    assert main(train(model, *SCORED, *more)) == 0
    printed = capfd.readouterr()
    names = {p.name for p in (corpus / "run").iterdir()}
    assert names >= {"best", "last", "checkpoint.safetensors", "curves.png", "metrics.jsonl"}
    assert "run.yaml" in names
    evaluations = [r for r in records(corpus / "run") if r["kind"] == "eval"]
    best = max(evaluations, key=lambda e: e["dev"]["accuracy"])
    expected = []
    for name in ("en", "de"):
        scored = (c for e in (best, evaluations[-1]) for c in (str(e["step"]), accuracy(e, name)))
        # Both classes are equally common, in what is trained on and in what is tested.
        expected += [[name, "adversarial", *scored], [name, "always", "music", "0.5000", "0.5000"]]
    assert rows(printed.out) == expected
    assert printed.out.splitlines()[-1] == "model run/best"
    # No terminal: plain lines, neither bars nor control characters, and no library's words.
    assert printed.err.splitlines() == [
        line for line in printed.err.splitlines() if re.fullmatch(r"step \d: accuracy dev .*", line)
    ]
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f]", printed.out + printed.err)


def test_quiet_says_nothing_on_standard_error(
    model: Path, corpus: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert main(train(model, *SCORED, "--config.steps", "1", "--quiet")) == 0
    assert capfd.readouterr().err == ""


def test_a_step_chosen_on_target_text_and_the_mean_of_weights(
    model: Path, corpus: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    more = ["--config.steps", "4", "--config.eval_every", "1", "--config.lr_task", "1e-3"]
    more += ["--config.selection", "nuclear_norm", "--config.mean_weights", "true", "--baseline"]
    assert main(train(model, *SCORED, *more)) == 0
    printed = capsys.readouterr().out
    columns = "selected step accuracy last step accuracy mean of evaluations accuracy"
    assert printed.splitlines()[0].split() == ["test", "run", *columns.split()]
    for folder in (corpus / "run", corpus / "run" / "baseline"):
        found = records(folder)
        norms = {
            r["step"]: sum(seen["nuclear_norm"] for seen in r["unlabeled"].values())
            for r in found
            if r["kind"] == "eval"
        }
        assert len(norms) == 4
        best = max(norms, key=lambda step: norms[step])
        run = "adversarial" if folder.name == "run" else "baseline"
        cells = next(row for row in rows(printed) if row[:2] == ["de", run])
        mean = next(r for r in found if r["kind"] == "mean")
        assert cells[2] == str(best) and cells[4] == "4"
        assert cells[6:] == ["3", accuracy(mean, "de")]
        assert (folder / "mean" / "model.safetensors").exists()


def test_without_dev_the_last_step_alone(
    model: Path, corpus: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--task", "ner", "--test", "en=en.conll", "--config.adversarial", "false"]
    assert main(train(model, *options, "--config.steps", "2", file="en.conll")) == 0
    printed = capsys.readouterr().out
    assert printed.splitlines()[0].split() == ["test", "last", "step", "f1"]
    assert [row[:2] for row in rows(printed)] == [["en", "2"]]
    assert printed.splitlines()[-1] == "model run/last"
    card = json.loads((corpus / "run" / "last" / "fastadv.json").read_text())
    assert card["labels"] == ["O", "B-LOC", "I-LOC", "B-PER", "I-PER"]


def test_without_test_files_dev_is_shown(
    model: Path, corpus: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(train(model, "--dev", "en.train", "--config.steps", "1")) == 0
    assert [row[:2] for row in rows(capsys.readouterr().out)] == [
        ["dev", "adversarial"],
        ["dev", "always"],
    ]


def test_run_yaml_starts_an_equal_run(model: Path, corpus: Path) -> None:
    more = ["--config.steps", "2", "--config.seed", "5", "--config.lr_task", "3e-5"]
    assert main(train(model, *SCORED, *more)) == 0
    saved = yaml.safe_load((corpus / "run" / "run.yaml").read_text())
    assert saved["unlabeled"] == ["de=de.txt", "fr=fr.txt"]
    assert saved["config"]["seed"] == 5 and saved["config"]["lr_task"] == 3e-5
    assert main(["train", "--options", "run/run.yaml", "--output", "again"]) == 0
    losses = [
        [r["loss_task"] for r in records(corpus / run) if r["kind"] == "train"]
        for run in ("run", "again")
    ]
    assert losses[0] == losses[1] and len(losses[0]) == 2


def test_later_options_override_the_file(model: Path, corpus: Path) -> None:
    (corpus / "o.yaml").write_text(
        f"model: {model}\ntrain: en.train\nunlabeled:\n  de: de.txt\noutput: run\n"
        "config:\n  steps: 50\n  max_length: 32\n  batch_size: 2\n"
    )
    more = ["--unlabeled", "fr=fr.txt", "--config.steps", "1", "--quiet"]
    assert main(["train", "--options", "o.yaml", *more]) == 0
    saved = yaml.safe_load((corpus / "run" / "run.yaml").read_text())
    assert saved["config"]["steps"] == 1 and saved["config"]["batch_size"] == 2
    assert saved["unlabeled"] == ["de=de.txt", "fr=fr.txt"]


def test_resume_goes_on_and_keeps_the_options(
    model: Path, corpus: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    begun = train(model, *SCORED, "--config.steps", "2")
    assert main(begun) == 0
    before = (corpus / "run" / "run.yaml").read_bytes()
    assert main([*begun, "--resume"]) == 0
    assert (corpus / "run" / "run.yaml").read_bytes() == before
    assert main([*begun, "--resume", "--config.steps", "3"]) == 0
    assert records(corpus / "run")[-1]["step"] == 3
    assert yaml.safe_load((corpus / "run" / "run.yaml").read_text())["config"]["steps"] == 3
    # What does not fit the run is refused, and changes nothing.
    kept = contents(corpus / "run")
    assert main([*begun, "--resume", "--config.seed", "1"]) == 2
    assert "seed" in capsys.readouterr().err
    assert contents(corpus / "run") == kept


def test_baseline_adds_its_rows_and_the_difference(
    model: Path, corpus: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    more = ["--config.steps", "3", "--config.eval_every", "1", "--config.lr_task", "1e-3"]
    assert main(train(model, *SCORED, *more, "--baseline")) == 0
    table = rows(capsys.readouterr().out)
    kinds = ("adversarial", "baseline", "difference", "always")
    assert [row[:2] for row in table] == [[name, run] for name in ("en", "de") for run in kinds]
    for adversarial, baseline, difference in (table[:3], table[4:7]):
        for score, place in ((3, 2), (5, 3)):
            gap = float(adversarial[score]) - float(baseline[score])
            assert float(difference[place]) == pytest.approx(gap, abs=1.01e-4)  # rounded twice
            assert difference[place][0] in "+-"
    twin = records(corpus / "run" / "baseline")
    assert all("loss_discriminator" not in r for r in twin)
    # The same draws: before any generator update the task losses are equal.
    assert twin[0]["loss_task"] == records(corpus / "run")[0]["loss_task"]
    assert (corpus / "run" / "curves.png").exists()
    assert not (corpus / "run" / "baseline" / "run.yaml").exists()


def test_a_stopped_twin_goes_on_and_the_first_run_is_not_repeated(
    model: Path, corpus: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun = train(model, *SCORED, "--config.steps", "3", "--baseline")
    steps: list[bool] = []
    after_step = fastadv.run.fit.Run._after_step

    def stop_in_the_twin(self: fastadv.run.fit.Run) -> None:
        steps.append(self.config.adversarial)
        after_step(self)
        if steps.count(False) == 1 and not self.config.adversarial:
            self.checkpoint()
            raise KeyboardInterrupt("stopped")

    monkeypatch.setattr(fastadv.run.fit.Run, "_after_step", stop_in_the_twin)
    assert main(begun) == 130
    assert steps == [True] * 3 + [False]
    assert main([*begun, "--resume"]) == 0
    assert steps == [True] * 3 + [False] * 3
    assert records(corpus / "run" / "baseline")[-1]["step"] == 3


def test_baseline_needs_an_adversarial_run(
    model: Path, corpus: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(train(model, "--baseline", "--config.adversarial", "false")) == 2
    assert "expected an adversarial run" in capsys.readouterr().err


def test_records_go_to_the_trackers_too(
    model: Path,
    corpus: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    opened: list[str] = []

    class Tracker:
        def log(self, record: dict) -> None: ...
        def close(self) -> None: ...

    def open_tracker(name: str, *rest: object) -> Tracker:
        opened.append(name)
        return Tracker()

    monkeypatch.setattr(fastadv.run.fit, "open_tracker", open_tracker)
    monkeypatch.setattr(fastadv.cli.train, "find_spec", lambda name: name != "trackio")
    chosen = ["--tracker", "tensorboard", "--tracker", "wandb", "--tracker", "wandb"]
    assert main(train(model, *chosen, "--config.steps", "1", "--quiet")) == 0
    assert opened == ["tensorboard", "wandb"]
    capsys.readouterr()
    monkeypatch.setattr(fastadv.cli.train, "find_spec", lambda name: None)
    assert main(train(model, "--tracker", "trackio", output="other")) == 2
    printed = capsys.readouterr().err
    assert len(printed.splitlines()) == 1 and "pip install trackio" in printed
    assert not (corpus / "other").exists()


def test_pipes_are_read_once(model: Path, corpus: Path) -> None:
    pipes = {name: corpus / f"{name}.pipe" for name in ("en.train", "de.txt")}
    writers = []
    for name, pipe in pipes.items():
        os.mkfifo(pipe)
        content = (corpus / name).read_text()
        writers.append(threading.Thread(target=pipe.write_text, args=(content,), daemon=True))
        writers[-1].start()
    more = ["--unlabeled", "it=de.txt.pipe", "--baseline", "--config.steps", "1", "--quiet"]
    assert main(train(model, *more, file="en.train.pipe")) == 0
    assert records(corpus / "run" / "baseline")[-1]["step"] == 1


def test_a_run_is_freed_before_its_twin(
    model: Path, corpus: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two models with their optimisers would be twice the memory."""
    held: list[weakref.ref] = []
    alive: list[int] = []
    go = fastadv.run.fit.Run.go

    def watched(self: fastadv.run.fit.Run, resume: bool) -> History:
        alive.append(sum(tuner() is not None for tuner in held))
        held.append(weakref.ref(self.trained))
        return go(self, resume)

    monkeypatch.setattr(fastadv.run.fit.Run, "go", watched)
    assert main(train(model, "--baseline", "--config.steps", "1", "--quiet")) == 0
    assert alive == [0, 0]


def test_reading_options_reach_each_file(model: Path, corpus: Path) -> None:
    (corpus / "en.csv").write_text(
        "topic,body\n" + "".join(f"{n},the rain fell {n}\n" for n in ("a", "b", "a"))
    )
    (corpus / "de.txt").write_bytes("Größe und Übermut\nschöne Tage\n".encode("latin-1"))
    options = ["--encoding", "de=latin-1", "--columns", "train=text=body,label=topic"]
    arguments = train(model, *options, "--config.steps", "1", "--quiet", file="en.csv")
    assert main(arguments) == 0
    card = json.loads((corpus / "run" / "last" / "fastadv.json").read_text())
    assert card["labels"] == ["a", "b"]
    saved = yaml.safe_load((corpus / "run" / "run.yaml").read_text())
    assert saved["encoding"] == ["de=latin-1"]


def test_what_the_readers_note_is_shown_unless_quiet(
    model: Path, corpus: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (corpus / "deu.train").write_bytes("Größe O\nKöln B-LOC\n".encode("latin-1"))
    more = ["--task", "ner", "--test", "de=deu.train", "--config.steps", "1"]
    assert main(train(model, *more, file="en.conll")) == 0
    assert "fastadv train: deu.train: read as latin-1" in capsys.readouterr().err
    assert main(train(model, *more, "--quiet", file="en.conll", output="other")) == 0
    assert capsys.readouterr().err == ""
    assert not logging.getLogger("fastadv").handlers


def test_difference_is_between_each_runs_own_selected_step() -> None:
    def history(best: int, scores: dict[int, float]) -> History:
        evaluations = [
            {"kind": "eval", "step": s, "dev": {}, "test": {"de": {"accuracy": v}}}
            for s, v in scores.items()
        ]
        return History(evaluations, best, 1.0)

    both = {"adversarial": history(10, {10: 0.9, 20: 0.5}), "baseline": history(20, {20: 0.75})}
    assert rows(summary(both, "classification")) == [
        ["de", "adversarial", "10", "0.9000", "20", "0.5000"],
        ["de", "baseline", "20", "0.7500", "20", "0.7500"],
        ["de", "difference", "+0.1500", "-0.2500"],
    ]


def test_the_commonest_class_is_that_of_training(
    model: Path, corpus: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Not of the test file, where another one is commoner."""
    (corpus / "uneven").write_text("".join(f"weather\t{word}\n" for word in "abc") + "music\td\n")
    (corpus / "test").write_text("weather\ta\n" + "".join(f"music\t{word}\n" for word in "bcd"))
    files = ["--test", "x=test", "--dev", "uneven", "--config.mean_weights", "true"]
    assert main(train(model, *files, "--config.steps", "2", file="uneven")) == 0
    always = rows(capsys.readouterr().out)[-1]
    assert always == ["x", "always", "weather", "0.2500", "0.2500", "0.2500"]
    for saved in ("best", "last", "mean"):
        card = json.loads((corpus / "run" / saved / "fastadv.json").read_text())
        assert card["class_counts"] == {"weather": 3, "music": 1}
        assert main(["evaluate", "--model", f"run/{saved}", "--test", "x=test"]) == 0
        # Macro-F1 of one class that is right once in four: F1 0.4, and 0 of the other.
        assert rows(capsys.readouterr().out)[-1] == ["x,", "always", "weather", "0.2500", "0.2000"]
    assert main(["evaluate", "--model", "run/last", "--test", "x=test", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)["x"]
    assert facts["majority"] == {"label": "weather", "accuracy": 0.25, "macro_f1": 0.2}


def test_a_packaged_encoder_gets_rates_that_fit_it(
    corpus: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Unless the recipe is the paper's; what is kept of the options says which."""
    recommended._said.clear()
    steps = ["--model", "fastadv-mini", "--config.steps", "1"]
    assert main(train(Path("any"), *steps)) == 0
    assert capsys.readouterr().err.splitlines()[0] == (
        "fastadv train: fastadv-mini: lr_task 0.0002, lr_discriminator 0.005, lr_generator 2e-05, "
        "recommended for this encoder; --recipe paper for the paper's"
    )
    assert main(train(Path("any"), *steps, "--recipe", "paper", output="paper")) == 0
    assert "recommended" not in capsys.readouterr().err
    rates = {}
    for folder in ("run", "paper"):
        kept = yaml.safe_load(Path(folder, "run.yaml").read_text())
        saved = json.loads(Path(folder, "last", "fastadv.json").read_text())["config"]
        assert kept["config"]["lr_task"] is None and "recipe" not in kept
        assert kept["config"]["recipe"] == saved["recipe"]
        rates[saved["recipe"]] = saved["lr_task"]
    assert rates == {"recommended": 2e-4, "paper": 2e-6}
    again = ["train", "--options", "paper/run.yaml", "--resume", "--config.steps", "2", "--quiet"]
    assert main(again) == 0
    assert main([*again, "--recipe", "recommended"]) == 2
    assert "--recipe paper" in capsys.readouterr().err
