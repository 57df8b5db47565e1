"""The sbatch script, run with stand-ins for srun, scancel and scontrol."""

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

from megadeberta.errors import ConfigError
from megadeberta.launcher.slurm import SlurmJob, render_sbatch

# The step notes its arguments and waits for a USR1 in the form of a file that scancel makes.
SRUN = """#!/bin/bash
echo "$@" > srun.args
[ -n "$QUICK" ] && exit "$QUICK"
touch step.running
while [ ! -e step.told ]; do sleep 0.02; done
exit 75
"""


def _prepare(tmp_path: Path) -> tuple[Path, dict[str, str]]:
    for name, body in {
        "srun": SRUN,
        "scancel": '#!/bin/bash\necho "$@" > scancel.args\ntouch step.told\n',
        "scontrol": '#!/bin/bash\necho "$@" > scontrol.args\n',
    }.items():
        (tmp_path / name).write_text(body)
        (tmp_path / name).chmod(0o755)
    script = tmp_path / "job.sh"
    job = SlurmJob("v3", tmp_path / "my run", nodes=4, tasks_per_node=8)
    script.write_text(render_sbatch(job, ["megadeberta", "train", "my recipe.json", "--set", "name=$x"]))
    job_environ = {"SLURM_JOB_ID": "77", "SLURM_CPUS_ON_NODE": "96"}
    return script, {"PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}", **job_environ}


def test_notice_is_passed_to_the_step_and_the_job_requeued(tmp_path: Path) -> None:
    script, environ = _prepare(tmp_path)
    shell = subprocess.Popen(["bash", str(script)], cwd=tmp_path, env=environ)
    while not (tmp_path / "step.running").exists():
        time.sleep(0.02)
    shell.send_signal(signal.SIGUSR1)
    assert shell.wait(timeout=20) == 75
    assert (tmp_path / "scancel.args").read_text() == "--signal=USR1 77.0\n"
    assert (tmp_path / "scontrol.args").read_text() == "requeue 77\n"


@pytest.mark.parametrize("code", [80, 137, 138])
def test_a_lost_rank_requeues_the_job_until_it_makes_no_progress(tmp_path: Path, code: int) -> None:
    script, environ = _prepare(tmp_path)
    latest = tmp_path / "my run" / "checkpoints" / "latest"

    def requeued() -> bool:
        (tmp_path / "scontrol.args").unlink(missing_ok=True)
        done = subprocess.run(["bash", str(script)], cwd=tmp_path, env=environ | {"QUICK": str(code)}, timeout=20)
        assert done.returncode == code
        return (tmp_path / "scontrol.args").exists()

    assert [requeued() for _ in range(5)] == [True, True, True, False, False]
    latest.parent.mkdir()
    latest.write_text("step-100\n")
    assert [requeued() for _ in range(4)] == [True, True, True, False]


@pytest.mark.parametrize("code", [0, 2, 77, 79])
def test_other_ends_are_passed_on_without_requeueing(tmp_path: Path, code: int) -> None:
    script, environ = _prepare(tmp_path)
    done = subprocess.run(["bash", str(script)], cwd=tmp_path, env=environ | {"QUICK": str(code)}, timeout=20)
    assert done.returncode == code
    assert not (tmp_path / "scontrol.args").exists()


def test_script_asks_for_the_layout_and_quotes_the_command(tmp_path: Path) -> None:
    script, environ = _prepare(tmp_path)
    text = script.read_text()
    for line in ("--nodes=4", "--ntasks-per-node=8", "--signal=B:USR1@180", "--requeue", "--exclusive", "--mem=0"):
        assert f"#SBATCH {line}\n" in text
    subprocess.run(["bash", str(script)], cwd=tmp_path, env=environ | {"QUICK": "0"}, timeout=20, check=True)
    arguments = (tmp_path / "srun.args").read_text()
    assert arguments.endswith("megadeberta train my recipe.json --set name=$x\n")
    assert arguments.startswith("--label --cpus-per-task=12 ")


@pytest.mark.parametrize(("cores", "share"), [("96", 12), ("8", 1), ("4", 1), (None, 1)])
def test_each_task_gets_its_share_of_the_cores_and_one_at_least(tmp_path: Path, cores: str | None, share: int) -> None:
    script, environ = _prepare(tmp_path)
    environ.pop("SLURM_CPUS_ON_NODE")
    told = {} if cores is None else {"SLURM_CPUS_ON_NODE": cores}
    subprocess.run(["bash", str(script)], cwd=tmp_path, env=environ | {"QUICK": "0"} | told, timeout=20, check=True)
    assert (tmp_path / "srun.args").read_text().startswith(f"--label --cpus-per-task={share} ")


def test_script_is_whole_in_a_terminal_of_80_columns() -> None:
    words = ["megadeberta", "train", "deberta-v3-base", *["--set", "training.output_dir=runs/of-this-month/v3"] * 3]
    text = render_sbatch(SlurmJob("deberta-v3-base", Path("runs/deberta-v3-base"), nodes=4, tasks_per_node=8), words)
    assert [line for line in text.splitlines() if len(line) > 80] == []


def test_job_without_ranks_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"0 node\(s\) with 8 rank\(s\) each starts nothing"):
        render_sbatch(SlurmJob("v3", Path("run"), nodes=0, tasks_per_node=8), ["true"])
