"""The benchmark of the encoder's forward pass: what it checks, times and reports."""

from __future__ import annotations

import functools
import importlib
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

from fastadv.nn.packed_encoder import PackedBert

CPU = torch.device("cpu")
SMALL = ("--model-size", "tiny", "--device", "cpu", "--lengths", "5,12", "--batch-sizes", "1,3")
pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    module = importlib.import_module("encoder_time")
    monkeypatch.setattr(module, "matrix_rate", lambda device, dtype: 1e12)
    # Traced as ever but not compiled, which takes a minute.
    eager = functools.partial(module.compile_regions, backend="eager")
    monkeypatch.setattr(module, "compile_regions", eager)
    return module


def test_reports_what_it_measured(
    bench: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = tmp_path / "report.json"
    command = [*SMALL, "--rounds", "3", "--max-tokens", "15", "--compile", "--json", str(target)]
    assert bench.main(command) == 0
    found = json.loads(target.read_text())
    # 12 by 3 has more tokens than are allowed.
    shapes = [(row["length"], row["batch_size"], row["tokens"]) for row in found["rows"]]
    assert shapes == [(5, 1, 5), (5, 3, 15), (12, 1, 12)]
    others = {"autocast", "bfloat16", "autocast compiled", "bfloat16 compiled"}
    for row in found["rows"]:
        assert row["passed"] and set(row["errors"]) == set(row["seconds"]) == others | {"ours"}
        assert set(row["ratios"]) == others
        for name, runs in row["runs"].items():
            assert len(runs) == 3 and row["seconds"][name] == np.median(runs)
        for name, ratio in row["ratios"].items():
            pairs = np.array(row["runs"][name]) / np.array(row["runs"]["ours"])
            assert ratio == pytest.approx(np.median(pairs))
        assert row["tflops"] > 0
    assert found["versions"]["torch"] == torch.__version__
    assert found["settings"]["model"] == "tiny" and found["settings"]["attention"] == "sdpa"
    printed = capsys.readouterr().out.splitlines()
    assert len([line for line in printed if line.split()[:2] in (["5", "1"], ["12", "1"])]) == 2
    assert "autocast compiled" in printed[-4] and "WRONG" not in "".join(printed)


@pytest.mark.parametrize("wrong", [1.001, float("nan")])
def test_a_wrong_result_is_not_timed(
    bench: ModuleType,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    wrong: float,
) -> None:
    # A thousandth is less than what transformers cast to bfloat16 is off by, and too much of ours.
    forward = bench.PackedBert.forward
    monkeypatch.setattr(bench.PackedBert, "forward", lambda *a: forward(*a) * wrong)
    target = tmp_path / "report.json"
    assert bench.main([*SMALL, "--json", str(target)]) == 1
    rows = json.loads(target.read_text())["rows"]
    assert len(rows) == 4
    assert not any(row["passed"] or {"seconds", "ratios"} & set(row) for row in rows)
    assert capsys.readouterr().out.count("WRONG") == 4


def test_a_wrong_baseline_is_not_timed_either(
    bench: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    transformers = bench.transformers

    def halved(model: Any, autocast: bool) -> Any:
        way = transformers(model, autocast)
        low = next(model.parameters()).dtype == torch.bfloat16
        return lambda ids: lambda: way(ids)() / (2 if low else 1)

    monkeypatch.setattr(bench, "transformers", halved)
    assert bench.main(SMALL) == 1


def test_all_share_the_weights_but_the_cast(
    bench: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    exact = bench.make_encoder("tiny", None, 1).eval()
    before = {name: tensor.clone() for name, tensor in exact.named_parameters()}
    twin = bench._compiled(exact)
    pairs = zip(exact.parameters(), twin.parameters(), strict=True)
    assert all(one is other for one, other in pairs)
    assert not any(hasattr(m, "_compiled_call_impl") and m._compiled_call_impl
                   for m in exact.modules())  # fmt: skip
    assert any(m._compiled_call_impl for m in twin.modules())
    made: list[Any] = []
    monkeypatch.setattr(bench, "PackedBert", lambda *a: made.append(PackedBert(*a)) or made[0])
    bench.ways(exact, CPU, None, compiled=False)
    after = dict(exact.named_parameters())
    assert all(torch.equal(tensor, after[name]) for name, tensor in before.items())
    word = exact.embeddings.word_embeddings.weight
    assert word.data_ptr() == made[0].embeddings.word.weight.data_ptr()
    assert {tensor.dtype for tensor in after.values()} == {torch.float32}


def test_ways_take_turns_and_what_compiled_is_done_again(
    bench: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    log: list[str] = []
    graphs = 0

    def run(work: Any, device: Any) -> float:
        work()
        return float(len(log))

    def work(name: str) -> None:
        nonlocal graphs
        log.append(name)
        # The third of b compiles once more.
        graphs += name == "b" and log.count("b") == 3

    monkeypatch.setattr(bench, "seconds", run)
    monkeypatch.setattr(bench, "graphs_compiled", lambda: graphs)
    works = {name: functools.partial(work, name) for name in "abc"}
    runs = bench.interleaved(works, CPU, 3)
    assert "".join(log) == "cab" + "abc" + "bbca" + "cab"
    assert runs == {"a": [4.0, 10.0, 12.0], "b": [5.0, 8.0, 13.0], "c": [6.0, 9.0, 11.0]}


def test_what_cannot_run_is_said_in_a_line(
    bench: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert bench.main([*SMALL, "--json", str(tmp_path / "no" / "x.json")]) == 2
    printed = capsys.readouterr().err
    assert "found no folder" in printed and printed.count("\n") == 1
    for wrong in (("--lengths", "5,x"), ("--batch-sizes", "0"), ("--model-size", "huge")):
        with pytest.raises(SystemExit) as refused:
            bench.main(wrong)
        assert refused.value.code == 2
    capsys.readouterr()


def test_the_machine_check_leaves_it_out(bench: ModuleType) -> None:
    # It runs the pytest benchmarks, and one that holds no test fails.
    names = [part.name for part in importlib.import_module("gpu_check").parts()]
    assert "bench_linear_bce" in names and "encoder_time" not in names
