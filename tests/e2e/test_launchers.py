"""The same command line under every launcher: same losses as `megadeberta launch`."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from megadeberta.rank.ports import pick_free_port
from tests.e2e.tiny_run import finish, losses, start, write_recipe

BIN = Path(sys.executable).parent
STEPS = 4


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory, prepared: Path) -> list[tuple[int, str, str]]:
    folder = tmp_path_factory.mktemp("launch")
    process = start(write_recipe(folder, prepared, training__steps=STEPS, schedule__warmup_steps=1))
    output = finish(process)
    assert process.returncode == 0, output
    return losses(folder / "run")


def _environ(**variables: str) -> dict[str, str]:
    path = f"{BIN}{os.pathsep}{os.environ['PATH']}"
    return {**os.environ, "PATH": path, "DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1", **variables}


def _commands(recipe: Path, launcher: str) -> list[tuple[list[str], dict[str, str]]]:
    """Command and environment of every process that this launcher's user starts."""
    port = str(pick_free_port())
    train = ["-m", "megadeberta", "train", str(recipe)]
    if launcher == "torchrun":
        return [([str(BIN / "torchrun"), "--nproc-per-node", "2", "--master-port", port, *train], _environ())]
    if launcher == "deepspeed":
        deepspeed = [str(BIN / "deepspeed"), "--num_gpus", "2", "--master_port", port]
        return [([*deepspeed, "--module", "megadeberta", *train[2:]], _environ())]
    if launcher == "mpiexec":
        return [([str(BIN / "mpiexec"), "-n", "2", sys.executable, *train], _environ(MASTER_PORT=port))]
    return [([sys.executable, *train], task) for task in _srun_tasks(port)]


def _srun_tasks(port: str) -> list[dict[str, str]]:
    """There is no Slurm here: the variables that srun sets for the two tasks of a step."""
    common = {"SLURM_JOB_ID": port, "SLURM_STEP_ID": "0", "SLURM_NTASKS": "2", "SLURM_STEP_TASKS_PER_NODE": "2"}
    return [_environ(**common, SLURM_PROCID=str(task), SLURM_LOCALID=str(task)) for task in range(2)]


def _start(command: list[str], environ: dict[str, str], folder: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        command, env=environ, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


@pytest.mark.parametrize("launcher", ["torchrun", "deepspeed", "mpiexec", "srun"])
def test_run_has_the_same_losses_under_every_launcher(
    launcher: str, tmp_path: Path, prepared: Path, expected: list[tuple[int, str, str]]
) -> None:
    recipe = write_recipe(tmp_path, prepared, training__steps=STEPS, schedule__warmup_steps=1)
    processes = [_start(command, environ, tmp_path) for command, environ in _commands(recipe, launcher)]
    for process in processes:
        output, _ = process.communicate(timeout=180)
        assert process.returncode == 0, output
    assert losses(tmp_path / "run") == expected


def _uneven_commands(recipe: Path, launcher: str, override: str) -> list[tuple[list[str], dict[str, str]]]:
    """Two ranks, of which the second is given an override that the first is not."""
    port = str(pick_free_port())
    train = ["-m", "megadeberta", "train", str(recipe)]
    other = [*train, "--set", override]
    if launcher == "torchrun":
        agent = [str(BIN / "torchrun"), "--nnodes", "2", "--nproc-per-node", "1", "--master-port", port]
        agent += ["--master-addr", "127.0.0.1", "--node-rank"]
        return [([*agent, str(node), *words], _environ()) for node, words in enumerate((train, other))]
    if launcher == "mpiexec":
        one, two = ([sys.executable, *words] for words in (train, other))
        return [([str(BIN / "mpiexec"), "-n", "1", *one, ":", "-n", "1", *two], _environ(MASTER_PORT=port))]
    return [([sys.executable, *words], task) for words, task in zip((train, other), _srun_tasks(port), strict=True)]


SETTINGS = {
    "optimizer.lr": "0.002",
    "training.seed": "7",
    "data.train": "",
    "model.hidden_dropout_prob": "0.25",
    "objective.mask_rate": "0.3",
    "deepspeed.zero_optimization.stage": "2",
}
"""What a user may change on one machine and not on the other; another data set is that of the validation."""


@pytest.mark.parametrize("launcher", ["torchrun", "mpiexec", "srun"])
@pytest.mark.parametrize("key", SETTINGS)
@pytest.mark.campaign
def test_a_rank_that_was_given_other_settings_is_refused_under_every_launcher(
    launcher: str, key: str, tmp_path: Path, prepared: Path
) -> None:
    recipe = write_recipe(tmp_path, prepared, training__steps=STEPS, schedule__warmup_steps=1)
    override = f"{key}={SETTINGS[key] or prepared / 'valid'}"
    processes = [_start(*command, tmp_path) for command in _uneven_commands(recipe, launcher, override)]
    outputs = [process.communicate(timeout=180)[0] for process in processes]
    assert all(process.returncode != 0 for process in processes), outputs
    said = re.findall(rf"rank 1 was started otherwise than rank 0: .*{re.escape(key)} is ", "\n".join(outputs))
    assert len(said) == 2, outputs  # by each rank
    assert not (tmp_path / "run" / "metrics.jsonl").exists()
