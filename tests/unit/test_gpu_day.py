"""The GPU day: it goes on after whatever one measurement does, and its note compares what there is with the goals."""

import io
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterable
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
import torch
from gpu import runner
from gpu.goals import GOALS, verdicts
from gpu.note import write_note
from gpu.op import Shape, largest_error, ours
from gpu.plan import Measurement, Planner, choose
from gpu.profiling import Event, summarise
from gpu.results import FAILED, MEASURED, SKIPPED, Record, Results
from peers import PACKAGES

from megadeberta.ops.attention.backends import BACKENDS, GPU, Backend

ROOT = Path(__file__).parents[2]


def _entry(function: str, **fields: Any) -> Measurement:
    return Measurement(function, "toy", f"tests.toy_measurements:{function}", **fields)


def _run(
    plan: Iterable[Measurement], folder: Path, *, seconds: float = 60, after: Callable[[Results], None] | None = None
) -> list[Record]:
    results = Results.create(folder)
    with (folder / "worker.log").open("w") as log:
        after_each = (lambda: after(results)) if after else (lambda: None)
        runner.Day(results, log, seconds=seconds, after_each=after_each).run(list(plan))
    written = [json.loads(line) for line in (folder / "results.jsonl").read_text().splitlines()]
    assert written == [vars(record) for record in results.records]
    return results.records


def test_the_day_goes_on_after_a_measurement_that_fails_dies_or_hangs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runner, "SHORTEST_DEADLINE", 1.0)
    names = ("answers", "fails_after_a_finding", "answers", "dies", "answers", "hangs", "answers")
    records = _run((_entry(name, seconds=0.0) for name in names), tmp_path)
    first, half, failed, second, died, third, hung, fourth = records
    assert [r.status for r in records] == [MEASURED, MEASURED, FAILED, MEASURED, FAILED, MEASURED, FAILED, MEASURED]
    assert half.name == "fails_after_a_finding: first half"
    assert failed.reason == "RuntimeError: no device of that name"
    assert "ended with code 3" in died.reason
    assert "took longer than 1 s" in hung.reason
    assert "in hangs" in (tmp_path / "worker.log").read_text(), "the log has the stack of what hung"
    processes = [record.values["process"] for record in (first, half, second, third, fourth)]
    assert processes[0] == processes[1] == processes[2], "an exception costs no process"
    assert len(set(processes[2:])) == 3
    assert "peak_gib" not in first.values, "what is not a number has no value"


def test_a_device_that_is_broken_costs_one_process(tmp_path: Path) -> None:
    before, failed, after = _run((_entry(name) for name in ("answers", "leaves_a_broken_device", "answers")), tmp_path)
    assert failed.reason == "SystemExit: the result is wrong"
    assert before.values["process"] != after.values["process"]


def test_what_is_not_installed_cannot_run_or_does_not_fit_is_skipped_by_name(tmp_path: Path) -> None:
    plan = [
        _entry("answers", needs=("json", "no_such_package")),
        _entry("answers", excluded="it needs a GPU"),
        _entry("answers", seconds=61.0),
        _entry("answers", seconds=5.0),
    ]
    *skipped, measured = _run(plan, tmp_path)
    assert [record.status for record in skipped] == [SKIPPED] * 3
    assert skipped[0].reason == "no_such_package not installed"
    assert skipped[1].reason == "it needs a GPU"
    assert skipped[2].reason.startswith("no time left: it needs about 61 s")
    assert measured.status == MEASURED


def test_a_day_that_is_stopped_names_what_it_did_not_reach(tmp_path: Path) -> None:
    def stop(results: Results) -> None:
        if len(results.records) == 1:
            raise SystemExit(143)

    with pytest.raises(SystemExit):
        _run([_entry("answers"), _entry("fails_after_a_finding"), _entry("dies")], tmp_path, after=stop)
    records = [json.loads(line) for line in (tmp_path / "results.jsonl").read_text().splitlines()]
    assert [(r["name"], r["status"]) for r in records] == [
        ("answers", MEASURED),
        ("fails_after_a_finding", SKIPPED),
        ("dies", SKIPPED),
    ]
    assert records[-1]["reason"] == "the day was stopped before it"


def _all_measured() -> Results:
    """Every entry of a GPU's plan with the same numbers; peers three times slower than ours."""
    results = Results(io.StringIO())
    for entry in Planner(toy=False).plan():
        factor = 1.0 if entry.parameters.get("ours") else 3.0
        values = {"forward_ms": 2 * factor, "both_ms": 5 * factor, "step_ms": 100 * factor, "peak_gib": 2.0}
        values |= {"tokens_per_s": 3e5 / factor, "mfu": 0.25, "kib_per_token_per_layer": 18.0}
        results.add(Record(entry.name, entry.kind, MEASURED, entry.parameters, values))
    return results


def test_every_goal_is_read_from_measurements_that_the_plan_has() -> None:
    found = {f"{goal.number} {goal.what}": value for goal, value in verdicts(_all_measured())}
    assert len(found) == len(GOALS) and None not in found.values(), found
    assert {goal.number for goal in GOALS} == {*(f"G{n}" for n in range(1, 11)), "M1", "M2", "M3"}
    met = {f"{goal.number} {goal.what}": goal.is_met(found[f"{goal.number} {goal.what}"]) for goal in GOALS}
    assert not met["G1 attention layer, N=512, forward and backward"]  # 5 of 3.5 ms
    assert met["G1 same, against disentangled-flash"] and not met["G1 same, against transformers eager"]  # 3x
    assert found["G7 base step"] == pytest.approx(300)
    assert found["G9 base step : same-size BERT step"] == pytest.approx(1 / 3)
    assert found["M3 peak memory of a base step"] == pytest.approx(2.147, rel=1e-3)


def test_the_note_says_which_goals_are_missed_and_why_something_has_no_number(tmp_path: Path) -> None:
    results = _all_measured()
    results.add(Record("op X", "op", FAILED, reason="out of memory: 13 GiB"))
    results.add(Record("op Y", "op", SKIPPED, reason="flashdeberta not installed"))
    profile = summarise(
        [Event("gemm", 0, 900, True), Event("adam", 1000, 1100, True), Event("cudaLaunchKernel", 0, 1, False)]
    )
    results.add(Record("step base, auto: profile", "profile", MEASURED, {}, profile))
    write_note(tmp_path / "note.md", results, started=datetime(2026, 1, 2), seconds=3.0, toy=False)
    note = (tmp_path / "note.md").read_text()
    assert "| G1 | attention layer, N=512, forward and backward | <= 3.5 ms | 5 ms | **no** |" in note
    assert "Falls short: G1, " in note
    assert "| gemm | 1.0 | 0.900 | 81.8% |" in note and "idle 0.100 ms after `gemm`, before `adam`" in note
    assert "* op X: out of memory: 13 GiB" in note and "* op Y: flashdeberta not installed" in note


def test_a_profile_counts_overlap_once_and_names_gaps_copies_and_waits() -> None:
    events = [
        Event("a", 0, 100, True),
        Event("b", 50, 120, True),  # on another stream
        Event("Memcpy HtoD (Pageable -> Device)", 220, 230, True),
        Event("a", 232, 332, True),
        Event("cuLaunchKernelEx", 0, 2, False),
        Event("cudaStreamSynchronize", 120, 220, False),
    ]
    summary = summarise(events)
    assert summary["span_ms"] == pytest.approx(0.332) and summary["busy_ms"] == pytest.approx(0.230)
    assert summary["idle"] == pytest.approx(0.102 / 0.332)
    assert summary["gaps"] == [{"ms": 0.1, "after": "b", "before": "Memcpy HtoD (Pageable -> Device)"}]
    assert [(k["name"], k["count"], k["ms"]) for k in summary["kernels"]] == [("a", 2, 0.2), ("b", 1, 0.07)]
    assert (summary["launches"], summary["kernel_count"], summary["copies"][0]["ms"]) == (1, 3, 0.01)
    assert summary["waits"] == [{"name": "cudaStreamSynchronize", "count": 1, "ms": 0.1}]
    halves = summarise(events, runs=2)
    assert (halves["busy_ms"], halves["kernels"][0]["count"]) == (pytest.approx(0.115), 1)
    assert halves["kernels"][0]["share"] == summary["kernels"][0]["share"]


@pytest.mark.parametrize("padding", [False, True])
def test_the_check_of_the_op_finds_a_context_that_is_one_percent_off(padding: bool) -> None:
    torch.manual_seed(0)
    shape = Shape(3, 12, 2, 8, 4, 12, 0.1, padding, torch.float32, torch.device("cpu"))
    right = ours(shape, "cpu-lean")
    assert largest_error(shape, right) < 1e-6
    assert largest_error(shape, lambda *inputs: 1.01 * right(*inputs)) == pytest.approx(0.01, rel=0.01)


def test_a_backend_that_is_registered_is_measured_beside_the_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    new = Backend("tuned", "for one card", "nowhere:nothing", devices=(GPU,))
    monkeypatch.setitem(BACKENDS, new.name, new)
    plan = Planner(toy=True).plan()
    for kind in ("op", "layer", "kernels", "step", "kept", "agreement"):
        entries = [entry for entry in plan if entry.kind == kind and entry.parameters["variant"] == "tuned"]
        assert entries and all(entry.excluded for entry in entries), "a CPU is not its device"
    for package in PACKAGES:
        assert all("CUDA" in entry.excluded for entry in choose(plan, [package]))


def test_the_op_and_its_kernels_are_measured_with_torch_and_triton_alone() -> None:
    absent = ("pydantic", "deepspeed", "transformers", "matplotlib", "safetensors", "rich", "typer")
    modules = "gpu_day, gpu.op, gpu.kernels, gpu.device, gpu.worker"
    code = f"import sys; sys.modules.update(dict.fromkeys({absent!r})); import {modules}"
    environ = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'benchmarks'}"}
    done = subprocess.run([sys.executable, "-c", code], env=environ, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]


def _toy(folder: Path, *arguments: str) -> tuple[list[dict[str, Any]], str]:
    command = [sys.executable, "benchmarks/gpu_day.py", "--toy", "--output", str(folder), *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    lines = (folder / "results.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines], (folder / "note.md").read_text()


def test_a_toy_day_measures_op_kernels_layer_and_step_and_draws_a_chart(tmp_path: Path) -> None:
    wanted = ("op N=512 dropout 0.0", "kernels N=512 dropout 0.1, ", "layer N=128", "step base, auto")
    records, note = _toy(tmp_path, "--only", *wanted)
    status = {record["name"]: record["status"] for record in records}
    assert FAILED not in status.values(), [record for record in records if record["status"] == FAILED]
    skipped = {record["name"]: record["reason"] for record in records if record["status"] == SKIPPED}
    for package in PACKAGES:
        assert {f"op N=512 dropout 0.0, {package}", f"layer N=128, {package}"} <= skipped.keys()
    assert all("GPU" in reason for reason in skipped.values()), skipped
    errors = [record["values"]["error"] for record in records if "error" in record["values"]]
    assert all(record["values"]["tiles"] for record in records if record["name"].endswith("0.0, triton"))
    assert len(errors) == 3 and max(errors) < 1e-6  # the kernels, transformers and the reference
    assert any(record["kind"] == "kernel" and record["values"]["choice"] for record in records)
    assert "says anything about a GPU" in note and "Where the time goes: step base, auto" in note
    assert (tmp_path / "chart.png").stat().st_size > 1000


@pytest.mark.campaign
def test_a_whole_toy_day_measures_everything_that_does_not_need_a_gpu(tmp_path: Path) -> None:
    records, note = _toy(tmp_path)
    unmeasured = [record for record in records if record["status"] != MEASURED]
    assert all(record["status"] == SKIPPED and "GPU" in record["reason"] for record in unmeasured), unmeasured
    assert {record["kind"] for record in records} == {
        *(
            "device",
            "op",
            "kernels",
            "kernel",
            "tiles",
            "layer",
            "step",
            "profile",
            "kept",
            "kept on a CPU",
            "agreement",
        )
    }
    need_a_gpu = {"G6", "M3", "G7 base step, MFU"} | {g.number for g in GOALS if "disentangled-flash" in g.what}
    measured = [goal for goal in GOALS if not need_a_gpu & {goal.number, f"{goal.number} {goal.what}"}]
    assert measured and not any(f"| {g.number} | {g.what} | {g.wanted} | not measured |" in note for g in measured)
