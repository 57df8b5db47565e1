"""Mistakes that a new user makes, through the real command line: one clear line first, the documented exit code, and
nothing left that looks whole."""

import fcntl
import json
import os
import re
import resource
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from megadeberta import cli, train_cli
from megadeberta.errors import EXIT_DIVERGED, EXIT_STORAGE, EXIT_USAGE
from tests.e2e.mistakes import IN_A_PROCESS, override
from tests.e2e.tiny_run import finish, start, write_recipe
from tests.e2e.typed_mistakes import ALL_MISTAKES

SECONDS_ALLOWED = 40.0
"""Of CPU time: far above the bar of 5 seconds, which benchmarks/mistake_times.py measures on a quiet machine. What is
caught here is work that a mistake must not start: training, reading of whole corpora."""


def _run(arguments: list[str], **options: object) -> tuple[int, list[str], float]:
    """Exit code, lines of standard error, and CPU seconds of the command."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(
        [sys.executable, "-m", "megadeberta", *arguments],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        **{"env": {**os.environ, "DS_ACCELERATOR": "cpu"}, **options},
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return done.returncode, _said(done.stderr), seconds


def _said(text: str) -> list[str]:
    """The lines of standard error, without those that a slow machine is given while something is loaded."""
    return [line for line in text.splitlines() if not re.search(r", \d+ s \.\.\.$", line)]


@pytest.mark.parametrize("name", ALL_MISTAKES)
def test_mistake_gives_one_clear_line_and_exit_code_2(
    name: str,
    tmp_path: Path,
    prepared: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    case, expected = ALL_MISTAKES[name]
    monkeypatch.chdir(tmp_path)
    arguments = case(tmp_path, prepared)
    if name in IN_A_PROCESS:
        code, lines, seconds = _run(arguments)
        assert seconds < SECONDS_ALLOWED
    else:
        monkeypatch.setattr(sys, "argv", ["megadeberta", *arguments])
        code, lines = cli._run(), _said(capsys.readouterr().err)
    assert code == EXIT_USAGE, lines
    assert lines[0].startswith("error: "), lines
    assert len(lines) == 1, lines
    assert len(lines[0]) < 900
    assert re.search(expected, lines[0]), lines[0]
    _nothing_looks_whole(tmp_path / "run")


MAY_LOAD_TORCH = ("convert", "fill-mask", "evaluate", "finetune", "cooldown", "extend", "checkpoint")
IN_ONE_PROCESS = """
import contextlib, io, json, os, sys
from megadeberta import cli, train_cli
for folder, arguments in json.load(sys.stdin):
    os.chdir(folder)
    sys.argv = ["megadeberta", *arguments]
    with contextlib.redirect_stderr(io.StringIO()):
        assert cli._run() == 2, arguments
    assert not {"torch", "transformers"} & sys.modules.keys(), arguments
"""


def test_no_mistake_of_a_command_that_needs_torch_or_of_a_start_from_weights_waits_for_it(
    tmp_path: Path, prepared: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Loading it takes seconds; what names and files alone say is said before."""
    typed = []
    for number, (case, _) in enumerate(ALL_MISTAKES.values()):
        folder = tmp_path / str(number)
        folder.mkdir()
        monkeypatch.chdir(folder)
        arguments = case(folder, prepared)
        if arguments[0] in MAY_LOAD_TORCH or any("init_from" in word for word in arguments):
            typed.append((str(folder), arguments))
    assert len(typed) > 35
    done = subprocess.run(
        [sys.executable, "-c", IN_ONE_PROCESS], input=json.dumps(typed), capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr


def test_the_list_has_the_mistakes_of_a_first_hour() -> None:
    assert len(ALL_MISTAKES) >= 250
    assert ALL_MISTAKES.keys() >= IN_A_PROCESS


def _nothing_looks_whole(output: Path) -> None:
    assert not (output / "train.json").exists()
    assert not (output / "checkpoints" / "latest").exists()
    assert not (output / "recipe.json").exists() or not list((output / "checkpoints").glob("step-*"))
    assert not (output / "model.safetensors").exists()


@pytest.fixture(scope="module")
def finished_run(tmp_path_factory: pytest.TempPathFactory, prepared: Path) -> Path:
    """Folder of a recipe whose run of three steps is done."""
    folder = tmp_path_factory.mktemp("finished")
    code, lines, _ = _run(["train", str(write_recipe(folder, prepared)), "--set", "training.steps=6"])
    assert code == 0, lines
    return folder


def _with_recipe_of(finished: Path, prepared: Path, *overrides: str) -> list[str]:
    return override(*overrides)(finished, prepared)


def test_checkpoint_of_another_model_is_refused_and_kept(finished_run: Path, prepared: Path) -> None:
    before = (finished_run / "run" / "checkpoints" / "latest").read_text()
    code, lines, seconds = _run(_with_recipe_of(finished_run, prepared, "model.intermediate_size=96"))
    assert code == EXIT_USAGE
    assert re.search(r"error: .*model.intermediate_size is '96' here and '64' there", "\n".join(lines))
    assert seconds < SECONDS_ALLOWED
    assert (finished_run / "run" / "checkpoints" / "latest").read_text() == before


def test_run_that_is_done_says_so_and_changes_nothing(finished_run: Path, prepared: Path) -> None:
    before = (finished_run / "run" / "metrics.jsonl").read_bytes()
    code, lines, _ = _run(_with_recipe_of(finished_run, prepared, "training.steps=6"))
    assert code == 0
    assert "done after step 6" in "\n".join(lines)
    assert (finished_run / "run" / "metrics.jsonl").read_bytes() == before


def test_a_learning_rate_that_would_jump_is_refused_before_torch_unless_told(
    finished_run: Path, prepared: Path, tmp_path: Path
) -> None:
    shutil.copytree(finished_run / "run", tmp_path / "run")
    longer = override("training.steps=9")(tmp_path, prepared)
    code, lines, _ = _run(longer, env={**os.environ, "DS_ACCELERATOR": "cpu", "PYTHONPROFILEIMPORTTIME": "1"})
    assert code == EXIT_USAGE
    (error,) = [line for line in lines if line.startswith("error: ")]
    assert re.search(r"step-6: going on after step 6, .* would jump .* by training.steps 6 -> 9; change", error)
    imported = [line.split("|")[-1].strip() for line in lines if line.startswith("import time:")]
    assert "megadeberta.preflight.resume" in imported and "torch" not in imported

    code, lines, _ = _run([*longer, "--set", "checkpoint.learning_rate_jump=allow"])
    output = "\n".join(lines)
    assert code == 0, output
    assert re.search(r"resuming from .*step-6, saved .* ago, after step 6 of 9\n.*last losses: training ", output)
    assert "changed since then: checkpoint.learning_rate_jump refuse -> allow, " in output
    assert "the learning rate (optimizer.lr) goes from " in output


def test_damaged_checkpoints_are_never_a_silent_fresh_start(finished_run: Path, prepared: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(finished_run, tmp_path / "copy"))
    for weights in (copy / "run" / "checkpoints").glob("step-*/node-0.safetensors"):
        data = bytearray(weights.read_bytes())
        data[-1] ^= 1
        weights.write_bytes(data)
    code, lines, _ = _run(_with_recipe_of(copy, prepared, "training.steps=6"))
    assert code == EXIT_USAGE
    assert re.search(r"error: .*no sound checkpoint to resume from: .*node-0.safetensors.*sha256", "\n".join(lines))


@pytest.mark.parametrize("how", ["emptied", pytest.param("renamed", marks=pytest.mark.campaign)])
def test_checkpoints_that_vanished_stop_the_start_and_the_log_stays(
    how: str, finished_run: Path, prepared: Path, tmp_path: Path
) -> None:
    """Also where the run was too short for one of ``checkpoint.interval``."""
    copy = Path(shutil.copytree(finished_run, tmp_path / "copy"))
    checkpoints = copy / "run" / "checkpoints"
    checkpoints.rename(copy / "run" / "old")
    if how == "emptied":
        checkpoints.mkdir()
    before = (copy / "run" / "metrics.jsonl").read_bytes()
    code, lines, _ = _run(_with_recipe_of(copy, prepared, "checkpoint.interval=100"))
    assert code == EXIT_USAGE
    assert re.search(r"error: .*the log has 6 steps, so there was a checkpoint, and there is none", "\n".join(lines))
    assert (copy / "run" / "metrics.jsonl").read_bytes() == before


def test_folder_in_use_names_the_process_that_holds_it(tmp_path: Path, prepared: Path) -> None:
    recipe = write_recipe(tmp_path, prepared)
    (tmp_path / "run").mkdir()
    with open(tmp_path / "run" / ".lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        lock.write(f'{{"pid": {os.getpid()}, "host": "here", "since": "now"}}')
        lock.flush()
        code, lines, seconds = _run(["train", str(recipe)])
    assert code == EXIT_USAGE
    assert re.search(rf"^error: output folder .* is in use by process {os.getpid()} on here", lines[0])
    assert seconds < SECONDS_ALLOWED


def test_port_in_use_is_named(tmp_path: Path, prepared: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        recipe = str(write_recipe(tmp_path, prepared))
        code, lines, seconds = _run(["launch", recipe, "--ranks", "2", "--master-port", str(port)])
    assert code == EXIT_USAGE
    assert re.search(rf"^error: .*port {port} is in use", lines[0])
    assert seconds < SECONDS_ALLOWED


def test_half_an_environment_of_a_launcher_is_named(tmp_path: Path, prepared: Path) -> None:
    recipe = str(write_recipe(tmp_path, prepared))
    code, lines, _ = _run(["train", recipe], env={**os.environ, "RANK": "1"})
    assert code == EXIT_USAGE
    assert lines[0].startswith("error: WORLD_SIZE not set")


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({"WORLD_SIZE": "0", "RANK": "0"}, r"WORLD_SIZE=0 in the environment starts no rank"),
        (
            {"WORLD_SIZE": "2", "RANK": "0", "LOCAL_RANK": "9", "MASTER_ADDR": "h"},
            r"LOCAL_RANK=9 and WORLD_SIZE=2 con",
        ),
        ({"DS_ACCELERATOR": "tpu"}, r"DS_ACCELERATOR='tpu' in the environment is none of cuda and cpu; unset it"),
    ],
)
def test_a_wrong_environment_is_named(
    variables: dict[str, str],
    expected: str,
    tmp_path: Path,
    prepared: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(sys, "argv", ["megadeberta", "train", str(write_recipe(tmp_path, prepared))])
    assert cli._run() == EXIT_USAGE
    assert re.search(rf"^error: .*{expected}", capsys.readouterr().err)


def test_a_model_that_the_machine_cannot_hold_is_refused_before_torch_is_loaded(
    tmp_path: Path, prepared: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(train_cli, "machine_memory", lambda: 500_000)
    monkeypatch.setattr(train_cli, "count_local_devices", lambda environ: 0)
    monkeypatch.setattr(sys, "argv", ["megadeberta", "train", str(write_recipe(tmp_path, prepared))])
    assert cli._run() == EXIT_USAGE
    said = capsys.readouterr().err
    assert re.search(
        r"^error: .*optimizer states of a rank take .* GiB, and this machine has 0.00 GiB and no GPU", said
    )


def test_missing_compiler_is_named_before_anything_starts(tmp_path: Path, prepared: Path) -> None:
    tools = tmp_path / "tools"
    tools.mkdir()
    arguments = override('deepspeed.zero_optimization={"stage":2,"offload_optimizer":{"device":"cpu"}}')
    code, lines, seconds = _run(
        arguments(tmp_path, prepared), env={**os.environ, "PATH": str(tools), "DS_ACCELERATOR": "cpu"}
    )
    assert code == EXIT_USAGE
    assert re.search(r"^error: .*offload_optimizer.*g\+\+.*apt install g\+\+", lines[0])
    assert seconds < SECONDS_ALLOWED


def test_key_that_only_deepspeed_knows_to_be_wrong_is_named(tmp_path: Path, prepared: Path) -> None:
    code, lines, _ = _run(override('deepspeed.zero_optimization={"reduce_bucket_size":-1}')(tmp_path, prepared))
    assert code == EXIT_USAGE
    assert re.search(r"error: DeepSpeed .* refuses the deepspeed block: .*reduce_bucket_size", "\n".join(lines))


def test_full_disk_stops_with_79_and_leaves_no_checkpoint(tmp_path: Path, prepared: Path) -> None:
    def small_files_only() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))

    recipe = str(write_recipe(tmp_path, prepared, training__steps=5))
    code, lines, _ = _run(["train", recipe], preexec_fn=small_files_only)
    assert code == EXIT_STORAGE, lines
    assert re.search(r"error: checkpoint of step 5 could not be written: .*step-5", "\n".join(lines))
    assert not list((tmp_path / "run" / "checkpoints").glob("*step-*"))


def test_run_that_diverges_stops_with_77_and_keeps_its_checkpoints(tmp_path: Path, prepared: Path) -> None:
    recipe = write_recipe(tmp_path, prepared, optimizer__lr=1e30, checkpoint__interval=1, schedule__warmup_steps=2)
    code, lines, _ = _run(["train", str(recipe)])
    assert code == EXIT_DIVERGED, lines
    assert re.search(r"error: step \d+: the (loss|gradient)", "\n".join(lines))


def test_stale_compile_lock_does_not_hang_the_start(tmp_path: Path, prepared: Path) -> None:
    """A run that was killed while DeepSpeed compiled leaves ``lock``; every later start used to wait forever."""
    lock = tmp_path / "extensions" / "deepspeed_shm_comm" / "lock"
    lock.parent.mkdir(parents=True)
    lock.touch()
    started = time.monotonic()
    process = start(
        write_recipe(tmp_path, prepared, training__steps=5), TORCH_EXTENSIONS_DIR=str(tmp_path / "extensions")
    )
    output = finish(process, timeout=120)
    assert process.returncode == 0, output
    assert time.monotonic() - started < 120
