"""``megadeberta plan`` on the command line."""

import json
import re
from pathlib import Path

import pytest
from typer.testing import CliRunner

from megadeberta.cli import app
from megadeberta.errors import ConfigError
from megadeberta.plan import options

RECIPES = Path(__file__).parents[3] / "ds_configs"
LARGE = str(RECIPES / "deberta-large.json")
BIG = str(RECIPES / "deberta-v2-xxlarge.json")
WIDE = {"COLUMNS": "240"}


def _plan(*arguments: str) -> str:
    done = CliRunner().invoke(app, ["plan", *arguments], env=WIDE)
    assert done.exit_code == 0, done.output
    return done.stdout


def test_table_ends_with_a_recommendation_its_reason_and_the_command() -> None:
    text = _plan(LARGE, "--nodes", "6", "--gpus", "16", "--memory", "32", "--limit", "3")
    assert "406,789,209 parameters" in text
    assert "t x p x d" in text
    assert "recommended: tensor" in text
    assert "because: " in text
    command = text[text.rindex("megadeberta launch ") :].replace("\\\n    ", "")
    assert command.startswith(f"megadeberta launch {LARGE} --hostfile HOSTS --set parallel.pipeline=")


def test_json_holds_every_layout_and_the_stages() -> None:
    set_stages = ("--set", "deepspeed.train_batch_size=12")
    values = json.loads(_plan(BIG, "--gpus", "8", "--memory", "80", "--json", "--stages", *set_stages))
    assert {layout["layout"]["data"] for layout in values["layouts"]} == {1, 2, 4}
    chosen = values["recommended"]
    assert chosen in values["layouts"]
    assert chosen["memory"]["device"] <= 74.2 * 2**30
    seconds = chosen["seconds"]
    assert sum(value for name, value in seconds.items() if name != "total") == pytest.approx(seconds["total"])
    assert set(seconds) == {"compute", "host", "tensor", "bubble", "pipeline", "data", "offload", "total"}
    assert values["run"]["days"] > 0
    assert values["overrides"][0] == set_stages[1]
    own = [stage["parameters"] for stage in values["stages"]]
    assert len(own) == chosen["layout"]["pipeline"]
    assert sum(own) >= 1_567_828_068  # copies of the tied tables come on top


def test_nothing_fits_is_an_error_with_the_smallest_layout_and_a_way_out() -> None:
    with pytest.raises(ConfigError, match=r"nothing fits: the smallest layout.*needs .*GiB a GPU.*offload_optimizer"):
        CliRunner().invoke(
            app, ["plan", BIG, "--gpus", "1", "--memory", "17", "--limit", "1"], env=WIDE, catch_exceptions=False
        )
    with pytest.raises(ConfigError, match="use more GPUs or larger ones"):
        CliRunner().invoke(
            app, ["plan", BIG, "--gpus", "1", "--memory", "4", "--limit", "1"], env=WIDE, catch_exceptions=False
        )


def test_a_reserve_of_all_memory_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"--reserve 40 leaves nothing of the 32 GiB of a GPU"):
        CliRunner().invoke(
            app, ["plan", LARGE, "--gpus", "8", "--memory", "32", "--reserve", "40"], catch_exceptions=False
        )


def test_ranks_without_dry_run_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"--ranks 2 goes with --dry-run; `megadeberta launch .*--ranks 2`"):
        CliRunner().invoke(app, ["train", LARGE, "--ranks", "2"], catch_exceptions=False)


@pytest.mark.parametrize("columns", [80, 120])
@pytest.mark.parametrize("nodes", [4, 128])
def test_no_column_is_cut_and_a_row_is_whole_in_a_narrow_terminal(columns: int, nodes: int) -> None:
    wide = ("--set", "model.hidden_size=4096", "--set", "model.num_attention_heads=64")
    done = CliRunner().invoke(
        app,
        ["plan", BIG, "--nodes", str(nodes), "--gpus", "8", "--gpu", "h100", "--limit", "40", *wide],
        env={"COLUMNS": str(columns)},
    )
    assert done.exit_code == 0, done.output
    table = done.output.splitlines()
    assert all(len(line) <= columns for line in table)
    assert "…" not in done.output
    head = next(line for line in table if line.split()[:1] == ["t"])
    seconds = head.split().index("step") - len(head.split())
    rows = [line for line in table if re.match(r" *\d+ x \d+ x \d+ +[0-3] +\d+ x \d+ ", line)]
    assert len(rows) == 40
    assert all(float(row.split()[seconds]) > 0 for row in rows)


def test_the_gpu_fills_in_memory_rates_and_peak_and_options_win() -> None:
    values = json.loads(_plan(LARGE, "--gpus", "8", "--gpu", "a100-40", "--tflops", "99", "--json"))
    assert values["cluster"]["memory_gib"] == 40
    assert (values["cluster"]["tflops"], values["cluster"]["peak_tflops"]) == (99, 312)
    assert 0 < values["run"]["mfu"] < 1


def test_the_command_asks_for_what_was_planned_with() -> None:
    text = _plan(LARGE, "--gpus", "8", "--gpu", "h100", "--overlap", "data", "--set", "training.steps=50000")
    assert "attention triton (auto takes it if its trial passes)" in text
    assert "a run: " in text
    assert "--set training.steps=50000 --set deepspeed.zero_optimization.overlap_comm=true" in text


def _shown_cluster(*arguments: str) -> dict:
    return json.loads(_plan(LARGE, "--json", *arguments))


def test_where_nothing_is_said_a_common_machine_is_assumed_and_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(options, "count_local_devices", lambda environ: 0)
    assert "assumed: 8 GPUs a machine, GPUs of type a100-80; --gpus, --gpu and --memory say" in _plan(LARGE)
    values = _shown_cluster("--gpus", "4")
    assert values["assumed"] == "assumed: GPUs of type a100-80; --gpus, --gpu and --memory say what you have"
    assert (values["cluster"]["gpus"], values["cluster"]["memory_gib"]) == (4, 80)
    values = _shown_cluster("--memory", "48")
    assert values["assumed"] == "assumed: 8 GPUs a machine; --gpus, --gpu and --memory say what you have"
    assert (values["cluster"]["gpus"], values["cluster"]["memory_gib"]) == (8, 48)


def test_the_gpus_of_this_machine_come_before_assumptions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(options, "count_local_devices", lambda environ: 2)
    monkeypatch.setattr(options, "smallest_device_gib", lambda: 44.0)
    values = _shown_cluster()
    assert values["assumed"] is None
    assert (values["cluster"]["gpus"], values["cluster"]["memory_gib"]) == (2, 44)
    assert _shown_cluster("--gpu", "h100", "--gpus", "8")["cluster"]["memory_gib"] == 80
