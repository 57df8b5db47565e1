"""The findings of trials on disk: read by the next start, never trusted, never needed."""

import json
import logging
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from megadeberta.cli import app
from megadeberta.model.kernel_choice import facts
from megadeberta.model.kernel_choice.cache import KernelCache
from megadeberta.model.kernel_choice.facts import trial_facts
from megadeberta.model.kernel_choice.findings import ENCODER, Findings, Tried
from megadeberta.ops.attention.backends import BACKENDS
from tests.models import run_config, tiny_v3

FACTS = {"device": "NVIDIA H200", "shape": "64 x 512 tokens"}
FINDINGS: Findings = {ENCODER: {"reference": Tried(1.0), "triton": Tried(0.5)}}


def test_findings_are_read_for_the_same_facts_only(tmp_path: Path) -> None:
    cache = KernelCache(tmp_path / "new" / "folder")
    assert cache.read(FACTS) is None
    cache.write(FACTS, FINDINGS)
    assert cache.read(dict(reversed(FACTS.items()))) == FINDINGS
    assert cache.read(FACTS | {"device": "NVIDIA L4"}) is None
    assert [entry.findings for _, entry in cache.entries()] == [FINDINGS]
    assert cache.clear() == 1
    assert cache.read(FACTS) is None


@pytest.mark.parametrize("damage", ["cut", "foreign", "binary", "folder"])
def test_a_file_that_cannot_be_used_is_ignored_with_one_line_and_replaced(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, damage: str
) -> None:
    cache = KernelCache(tmp_path)
    cache.write(FACTS, FINDINGS)
    path = cache.path(FACTS)
    assert path is not None
    text = path.read_text()
    if damage == "cut":
        path.write_text(text[: len(text) // 2])
    elif damage == "foreign":
        path.write_text(text.replace("H200", "L4"))
    elif damage == "binary":
        path.write_bytes(b"\xff\x00\xfe")
    else:
        path.unlink()
        path.mkdir()
    assert cache.read(FACTS) is None
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert str(path) in record.message
    cache.write(FACTS, FINDINGS)
    if damage != "folder":
        assert cache.read(FACTS) == FINDINGS
        assert [found.name for found in tmp_path.iterdir()] == [path.name]


def test_a_folder_that_cannot_be_written_costs_one_line(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").write_text("in the way")
    cache = KernelCache(tmp_path / "file" / "kernels")
    cache.write(FACTS, FINDINGS)
    assert cache.read(FACTS) is None
    (record,) = caplog.records
    assert "MEGADEBERTA_KERNEL_CACHE" in record.message


def test_the_folder_is_the_users_own_unless_the_variable_moves_it_or_turns_it_off(tmp_path: Path) -> None:
    assert KernelCache.of({"HOME": "/home/me"}).folder == Path("/home/me/.cache/megadeberta/kernels")
    assert KernelCache.of({"HOME": "/home/me", "XDG_CACHE_HOME": "/fast"}).folder == Path("/fast/megadeberta/kernels")
    assert KernelCache.of({"MEGADEBERTA_KERNEL_CACHE": str(tmp_path)}).folder == tmp_path
    off = KernelCache.of({"MEGADEBERTA_KERNEL_CACHE": "off"})
    off.write(FACTS, FINDINGS)
    assert (off.read(FACTS), off.path(FACTS), list(off.entries()), off.clear()) == (None, None, [], 0)


def _facts(**changes: object) -> str:
    config = run_config(**changes)
    return json.dumps(trial_facts(config, ["reference"], dtype=torch.float32, device=torch.device("cpu")))


def test_other_shapes_masks_and_versions_are_other_facts(monkeypatch: pytest.MonkeyPatch) -> None:
    base = {"deepspeed": {"train_batch_size": 16, "train_micro_batch_size_per_gpu": 4}}
    found = [
        _facts(),
        _facts(deepspeed=base["deepspeed"] | {"train_micro_batch_size_per_gpu": 8}),
        _facts(data={"packing": "documents"}),
        _facts(data={"sequence_length": 32}),
        _facts(model=tiny_v3(dropout=0.1)),
        _facts(model=tiny_v3(dropout=0.2)),
        _facts(objective={"name": "ar"}),
        _facts(objective={"mask_rate": 0.4}),
        _facts(training={"residual_norm": "torch"}),
    ]
    monkeypatch.setattr(facts, "version", lambda package: "9.9")
    found.append(_facts())
    monkeypatch.setattr(facts, "_sources", lambda: "other kernels")
    found.append(_facts())
    assert len(set(found)) == len(found)
    assert _facts() == _facts()


def test_the_command_shows_what_runs_here_and_what_was_chosen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def run(*arguments: str) -> str:
        done = CliRunner().invoke(app, ["kernels", *arguments], catch_exceptions=False, env={"COLUMNS": "300"})
        assert done.exit_code == 0
        return done.output

    monkeypatch.setenv("MEGADEBERTA_KERNEL_CACHE", str(tmp_path))
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    assert f"no choices in {tmp_path}" in run()
    KernelCache(tmp_path).write(FACTS, FINDINGS)
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in run().splitlines() if line.startswith("│")]
    assert ["cpu", BACKENDS["cpu"].summary, "yes", "yes"] in rows
    (triton,) = [row for row in rows if row[0] == "triton"]
    assert triton[3].startswith("no: it needs a GPU")
    (choice,) = [row for row in rows if row[0] == "NVIDIA H200"]
    assert choice[1:5] == ["64 x 512 tokens", "", "triton, 2.0x faster than reference", ""]
    assert f"1 choices forgotten in {tmp_path}" in run("--clear")
    assert f"no choices in {tmp_path}" in run()
    monkeypatch.setenv("MEGADEBERTA_KERNEL_CACHE", "off")
    assert "not kept" in run()
