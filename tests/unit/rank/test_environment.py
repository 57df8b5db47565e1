"""Every launcher's variables lead to the same answer, and half-set ones to an error that names them."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from megadeberta.errors import ParallelError
from megadeberta.rank.environment import RankEnvironment, apply, detect_ranks, first_host

TORCHRUN = {
    "RANK": "5",
    "LOCAL_RANK": "1",
    "WORLD_SIZE": "8",
    "LOCAL_WORLD_SIZE": "4",
    "MASTER_ADDR": "node1",
    "MASTER_PORT": "29400",
    "TORCHELASTIC_RUN_ID": "none",
}
DEEPSPEED = {
    "RANK": "5",
    "LOCAL_RANK": "1",
    "WORLD_SIZE": "8",
    "LOCAL_SIZE": "4",
    "CROSS_RANK": "1",
    "CROSS_SIZE": "2",
    "MASTER_ADDR": "10.0.0.1",
    "MASTER_PORT": "29500",
}
OPEN_MPI = {
    "OMPI_COMM_WORLD_RANK": "5",
    "OMPI_COMM_WORLD_LOCAL_RANK": "1",
    "OMPI_COMM_WORLD_SIZE": "8",
    "OMPI_COMM_WORLD_LOCAL_SIZE": "4",
    "MASTER_ADDR": "node1",
}
HYDRA = {"PMI_RANK": "1", "PMI_SIZE": "2", "MPI_LOCALRANKID": "1", "MPI_LOCALNRANKS": "2"}
SRUN = {
    "SLURM_JOB_ID": "1234",
    "SLURM_STEP_ID": "0",
    "SLURM_PROCID": "5",
    "SLURM_LOCALID": "1",
    "SLURM_NODEID": "1",
    "SLURM_NTASKS": "8",
    "SLURM_STEP_NUM_TASKS": "8",
    "SLURM_STEP_TASKS_PER_NODE": "4(x2)",
    "SLURM_STEP_NODELIST": "node[03-04]",
}
SBATCH_SHELL = {
    "SLURM_JOB_ID": "1234",
    "SLURM_PROCID": "0",
    "SLURM_LOCALID": "0",
    "SLURM_NTASKS": "8",
    "SLURM_JOB_NODELIST": "node[03-04]",
}


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        (TORCHRUN, RankEnvironment(5, 1, 8, 4, "node1", 29400, "torchrun")),
        (DEEPSPEED, RankEnvironment(5, 1, 8, 4, "10.0.0.1", 29500, "deepspeed")),
        (OPEN_MPI, RankEnvironment(5, 1, 8, 4, "node1", 29500, "mpiexec (Open MPI)")),
        (HYDRA, RankEnvironment(1, 1, 2, 2, "127.0.0.1", 29500, "mpiexec (hydra)")),
        (
            {"PMI_RANK": "1", "PMI_SIZE": "2", "PMI_LOCAL_RANK": "1", "PMI_LOCAL_SIZE": "2"},
            RankEnvironment(1, 1, 2, 2, "127.0.0.1", 29500, "mpiexec (PALS)"),
        ),
        (SRUN, RankEnvironment(5, 1, 8, 4, "node03", 20978, "srun")),
        ({}, RankEnvironment(0, 0, 1, 1, "127.0.0.1", 0, "alone")),
        (
            {"RANK": "0", "WORLD_SIZE": "1"},
            RankEnvironment(0, 0, 1, 1, "127.0.0.1", 0, "RANK and WORLD_SIZE"),
        ),
    ],
)
def test_each_launcher_is_recognised(environ: dict[str, str], expected: RankEnvironment) -> None:
    assert detect_ranks(environ) == expected


@pytest.mark.parametrize(
    "extra",
    [
        {},  # sbatch, older Slurm: no step id
        {"SLURM_STEP_ID": str(0xFFFFFFFB)},  # the batch step
        {"SLURM_STEP_ID": str(0xFFFFFFFA), "SLURM_STEPID": str(0xFFFFFFFA)},  # salloc's interactive step
        {"SLURM_STEP_ID": "0", "SLURM_PTY_PORT": "40123"},  # srun --pty bash
        {"SLURM_STEP_ID": str(0xFFFFFFFB), "PMI_RANK": "0"},
    ],
)
def test_a_shell_inside_a_slurm_job_is_alone(extra: dict[str, str]) -> None:
    assert detect_ranks(SBATCH_SHELL | extra).started_by == "alone"


def test_variables_of_torch_win_over_those_of_the_outer_launcher() -> None:
    assert detect_ranks(SRUN | TORCHRUN).started_by == "torchrun"
    assert detect_ranks(SRUN | HYDRA).started_by == "mpiexec (hydra)"


def test_srun_with_a_pmi_plugin_is_still_srun() -> None:
    assert detect_ranks(SRUN | {"PMI_RANK": "5", "PMI_SIZE": "8"}) == detect_ranks(SRUN)


def test_all_ranks_of_a_job_compute_one_port_and_two_jobs_two() -> None:
    ports = {detect_ranks(SRUN | {"SLURM_PROCID": str(rank)}).master_port for rank in range(8)}
    other_step = detect_ranks(SRUN | {"SLURM_STEP_ID": "1"}).master_port
    other_job = detect_ranks(SRUN | {"SLURM_JOB_ID": "1235"}).master_port
    assert len(ports) == 1
    assert len(ports | {other_step, other_job}) == 3
    namespaces = [detect_ranks(OPEN_MPI | {"PMIX_NAMESPACE": f"prterun-{n}@1"}).master_port for n in (1, 1, 2)]
    assert namespaces[0] == namespaces[1] != namespaces[2]


def test_master_variables_override_what_is_derived() -> None:
    ranks = detect_ranks(SRUN | {"MASTER_ADDR": "head", "MASTER_PORT": "31000"})
    assert (ranks.master_addr, ranks.master_port) == ("head", 31000)


def test_mpi_in_a_slurm_job_takes_the_first_host() -> None:
    environ = {name: value for name, value in OPEN_MPI.items() if name != "MASTER_ADDR"}
    assert detect_ranks(environ | {"SLURM_JOB_NODELIST": "gpu[7,9]"}).master_addr == "gpu7"


def test_uneven_tasks_per_node_are_counted_for_the_own_node() -> None:
    uneven = SRUN | {"SLURM_STEP_TASKS_PER_NODE": "3(x2),2", "SLURM_NODEID": "2", "SLURM_PROCID": "7"}
    assert detect_ranks(uneven).local_world_size == 2


@pytest.mark.parametrize(
    ("nodelist", "host"),
    [
        ("node[03-05,7]", "node03"),
        ("node[03-05,7],other[1-2]", "node03"),
        ("a1,b[2-3]", "a1"),
        ("single", "single"),
        ("rack[1-2]n[01-04]", "rack1n01"),
        ("n[5]x.cluster.org", "n5x.cluster.org"),
        ("tux[1,3-9]-ib", "tux1-ib"),
    ],
)
def test_first_host_of_a_node_list_is_found(nodelist: str, host: str) -> None:
    assert first_host(nodelist) == host


@pytest.mark.parametrize("nodelist", ["", "node[", "[]", "a b", "$(id)", "node]3"])
def test_unreadable_node_list_asks_for_master_addr(nodelist: str) -> None:
    with pytest.raises(ParallelError, match=r"cannot find the first host .* set MASTER_ADDR"):
        first_host(nodelist)


@pytest.mark.parametrize(
    ("environ", "message"),
    [
        ({"RANK": "0"}, r"WORLD_SIZE not set in the environment although RANK=0 is"),
        ({"WORLD_SIZE": "2"}, r"RANK not set in the environment although WORLD_SIZE=2 is"),
        ({"RANK": "0", "WORLD_SIZE": "2"}, r"WORLD_SIZE=2 but LOCAL_RANK is not set"),
        ({"LOCAL_RANK": "0"}, r"LOCAL_RANK is set but RANK and WORLD_SIZE are not"),
        ({"PMI_RANK": "0", "PMI_SIZE": "2"}, r"MPI_LOCALRANKID not set"),
        ({"OMPI_COMM_WORLD_SIZE": "2"}, r"OMPI_COMM_WORLD_RANK and OMPI_COMM_WORLD_LOCAL_RANK not set"),
        (TORCHRUN | {"RANK": "8"}, r"RANK=8 must be below WORLD_SIZE=8"),
        (TORCHRUN | {"RANK": "one"}, r"RANK='one' in the environment must be an integer"),
        (TORCHRUN | {"RANK": "-1"}, r"RANK='-1' in the environment must be an integer"),
        (TORCHRUN | {"WORLD_SIZE": "0"}, r"WORLD_SIZE=0 in the environment starts no rank"),
        (TORCHRUN | {"LOCAL_RANK": "4"}, r"LOCAL_RANK=4, LOCAL_WORLD_SIZE=4 and WORLD_SIZE=8 contradict"),
        (TORCHRUN | {"MASTER_PORT": "70000"}, r"MASTER_PORT=70000 is not a port"),
        (TORCHRUN | {"MASTER_PORT": "x"}, r"MASTER_PORT='x' in the environment must be an integer"),
        ({k: v for k, v in TORCHRUN.items() if k != "MASTER_ADDR"}, r"MASTER_ADDR is not set and the 8 ranks"),
        ({k: v for k, v in OPEN_MPI.items() if k != "MASTER_ADDR"}, r"mpiexec -x MASTER_ADDR=HOST"),
        ({k: v for k, v in SRUN.items() if k != "SLURM_LOCALID"}, r"SLURM_LOCALID not set"),
        (SRUN | {"SLURM_STEP_TASKS_PER_NODE": "4(y2)"}, r"'4\(y2\)' is not of the form '8\(x2\),4'"),
        (SRUN | {"SLURM_PROCID": "8"}, r"SLURM_PROCID=8 must be below SLURM_STEP_NUM_TASKS=8"),
    ],
)
def test_half_set_and_contradictory_variables_are_refused(environ: dict[str, str], message: str) -> None:
    with pytest.raises(ParallelError, match=message):
        detect_ranks(environ)


def test_apply_gives_the_variables_that_torch_reads() -> None:
    assert apply(HYDRA) == {
        "RANK": "1",
        "WORLD_SIZE": "2",
        "LOCAL_RANK": "1",
        "LOCAL_WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": "29500",
    }


def test_apply_is_stable_under_its_own_result() -> None:
    for environ in (TORCHRUN, DEEPSPEED, OPEN_MPI, HYDRA, SRUN):
        applied = apply(environ)
        assert apply(environ | applied) == applied


def test_lone_processes_get_different_free_ports() -> None:
    ports = {int(apply({})["MASTER_PORT"]) for _ in range(5)}
    assert len(ports) > 1
    assert all(1024 <= port < 65536 for port in ports)


def test_ranks_under_the_installed_mpiexec_know_their_numbers() -> None:
    mpiexec = shutil.which("mpiexec", path=str(Path(sys.executable).parent) + os.pathsep + os.environ["PATH"])
    assert mpiexec is not None, "the test extra, which `make test` installs, brings one"
    # One string a line: of several, unbuffered Python writes each by itself, and mpiexec mixes what its ranks write.
    line = "'%(RANK)s %(WORLD_SIZE)s\\n' % apply(os.environ)"
    code = f"import os; from megadeberta.rank.environment import apply; print({line}, end='')"
    environ = {name: value for name, value in os.environ.items() if name not in ("RANK", "WORLD_SIZE", "LOCAL_RANK")}
    done = subprocess.run(
        [mpiexec, "-n", "2", sys.executable, "-c", code], env=environ, capture_output=True, text=True, timeout=60
    )
    assert sorted(done.stdout.split("\n")) == ["", "0 2", "1 2"], done.stderr
