"""The same command line under every launcher: same losses as `megadeberta launch`."""

import os
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
    # There is no Slurm here: the variables that srun sets for the two tasks of a step.
    common = {"SLURM_JOB_ID": port, "SLURM_STEP_ID": "0", "SLURM_NTASKS": "2", "SLURM_STEP_TASKS_PER_NODE": "2"}
    tasks = [{**common, "SLURM_PROCID": str(task), "SLURM_LOCALID": str(task)} for task in range(2)]
    return [([sys.executable, *train], _environ(**task)) for task in tasks]


@pytest.mark.parametrize("launcher", ["torchrun", "deepspeed", "mpiexec", "srun"])
def test_run_has_the_same_losses_under_every_launcher(
    launcher: str, tmp_path: Path, prepared: Path, expected: list[tuple[int, str, str]]
) -> None:
    recipe = write_recipe(tmp_path, prepared, training__steps=STEPS, schedule__warmup_steps=1)
    processes = [
        subprocess.Popen(
            command, env=environ, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        for command, environ in _commands(recipe, launcher)
    ]
    for process in processes:
        output, _ = process.communicate(timeout=180)
        assert process.returncode == 0, output
    assert losses(tmp_path / "run") == expected
