"""Which rank am I? One answer for torchrun, deepspeed, mpiexec, srun and a process started alone.

Pure: reads the mapping it is given, opens no socket and no file (``apply`` picks a free port for a lone process).
"""

import re
import zlib
from collections.abc import Mapping
from dataclasses import dataclass

from megadeberta.errors import ParallelError
from megadeberta.rank.ports import LOOPBACK, pick_free_port

DEFAULT_MASTER_PORT = 29500
ANY_FREE_PORT = 0
STARTED_BY_VARIABLE = "MEGADEBERTA_STARTED_BY"
JOB_VARIABLE = "MEGADEBERTA_JOB"
"""Marks the ranks of one job on machines that are reached by ssh."""

# Step ids from here up are Slurm's own: batch script, extern, interactive shell (slurm.h, SLURM_MAX_NORMAL_STEP_ID).
_FIRST_RESERVED_STEP = 0xFFFFFFF0


@dataclass(frozen=True)
class RankEnvironment:
    """Place of one process among the processes of a run. ``master_port`` 0 means any free port (a lone process)."""

    rank: int
    local_rank: int
    world_size: int
    local_world_size: int
    master_addr: str
    master_port: int
    started_by: str


@dataclass(frozen=True)
class _Family:
    """The four variables in which one MPI launcher tells a process its place."""

    name: str
    rank: str
    world_size: str
    local_rank: str
    local_world_size: str


_MPI_FAMILIES = (
    _Family(
        "mpiexec (Open MPI)",
        "OMPI_COMM_WORLD_RANK",
        "OMPI_COMM_WORLD_SIZE",
        "OMPI_COMM_WORLD_LOCAL_RANK",
        "OMPI_COMM_WORLD_LOCAL_SIZE",
    ),
    _Family("mpiexec (hydra)", "PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID", "MPI_LOCALNRANKS"),
    _Family("mpiexec (PALS)", "PMI_RANK", "PMI_SIZE", "PMI_LOCAL_RANK", "PMI_LOCAL_SIZE"),
)


def detect_ranks(environ: Mapping[str, str]) -> RankEnvironment:
    """Read the launcher's variables; the most explicit ones win: RANK/WORLD_SIZE, then MPI, then srun, then alone.

    Raises:
        ParallelError: half-set or contradictory variables, naming them.
    """
    if "RANK" in environ or "WORLD_SIZE" in environ:
        return _from_torch_variables(environ)
    for family in _MPI_FAMILIES:
        # Slurm's PMI plug-ins set PMI_RANK too, without the local pair: those processes are read as srun's below.
        if family.rank in environ and family.local_rank in environ:
            return _from_mpi(environ, family)
    if _is_srun_task(environ):
        return _from_srun(environ)
    if "LOCAL_RANK" in environ:
        raise ParallelError(
            "LOCAL_RANK is set but RANK and WORLD_SIZE are not; start with a launcher (megadeberta launch, torchrun, "
            "deepspeed, mpiexec, srun) or unset LOCAL_RANK"
        )
    for family in _MPI_FAMILIES:
        if "SLURM_JOB_ID" not in environ and (family.rank in environ or family.world_size in environ):
            _require(environ, (family.rank, family.world_size, family.local_rank))
    return RankEnvironment(0, 0, 1, 1, LOOPBACK, _port(environ, ANY_FREE_PORT), "alone")


def apply(environ: Mapping[str, str]) -> dict[str, str]:
    """The variables that torch and DeepSpeed read, complete and consistent, for the caller to set."""
    ranks = detect_ranks(environ)
    port = pick_free_port() if ranks.master_port == ANY_FREE_PORT else ranks.master_port
    return {
        "RANK": str(ranks.rank),
        "WORLD_SIZE": str(ranks.world_size),
        "LOCAL_RANK": str(ranks.local_rank),
        "LOCAL_WORLD_SIZE": str(ranks.local_world_size),
        "MASTER_ADDR": ranks.master_addr,
        "MASTER_PORT": str(port),
    }


def first_host(nodelist: str) -> str:
    """First host of a Slurm node list: ``node[03-05,7],other`` -> ``node03``."""
    head = re.match(r"((?:[^,\[\]]|\[[^\]]*\])+)(?:,|$)", nodelist.strip())
    host = re.sub(r"\[([^\],-]+)[^\]]*\]", r"\1", head[1]) if head else ""
    if not re.fullmatch(r"[A-Za-z0-9_.:-]+", host):
        raise ParallelError(f"cannot find the first host in the Slurm node list {nodelist!r}; set MASTER_ADDR to it")
    return host


def _from_torch_variables(environ: Mapping[str, str]) -> RankEnvironment:
    _require(environ, ("RANK", "WORLD_SIZE"))
    rank, world_size = _integer(environ, "RANK"), _integer(environ, "WORLD_SIZE")
    if not world_size:
        raise ParallelError("WORLD_SIZE=0 in the environment starts no rank; it counts all ranks of the run")
    if "LOCAL_RANK" in environ:
        local_rank = _integer(environ, "LOCAL_RANK")
    elif world_size == 1:
        local_rank = 0
    else:
        raise ParallelError(
            f"WORLD_SIZE={world_size} but LOCAL_RANK is not set; with one process a machine set LOCAL_RANK=0, "
            "otherwise the number of the process on its machine"
        )
    # torchrun counts local processes in LOCAL_WORLD_SIZE, deepspeed in LOCAL_SIZE. Without either, all ranks may be
    # here: the count only divides cores among ranks, and too few threads is the milder mistake.
    counter = next((name for name in ("LOCAL_WORLD_SIZE", "LOCAL_SIZE") if name in environ), None)
    local_world_size = _integer(environ, counter) if counter else world_size
    port = _port(environ, ANY_FREE_PORT if world_size == 1 else DEFAULT_MASTER_PORT)
    address = environ.get("MASTER_ADDR") or _master_addr(environ, world_size, local_world_size if counter else 1)
    return _checked(
        RankEnvironment(rank, local_rank, world_size, local_world_size, address, port, _torch_starter(environ)),
        ("RANK", "WORLD_SIZE", "LOCAL_RANK", counter or "WORLD_SIZE"),
    )


def _torch_starter(environ: Mapping[str, str]) -> str:
    if STARTED_BY_VARIABLE in environ:
        return environ[STARTED_BY_VARIABLE]
    if "TORCHELASTIC_RUN_ID" in environ:
        return "torchrun"
    if "CROSS_RANK" in environ and "LOCAL_SIZE" in environ:
        return "deepspeed"
    return "RANK and WORLD_SIZE"


def _from_mpi(environ: Mapping[str, str], family: _Family) -> RankEnvironment:
    names = (family.rank, family.world_size, family.local_rank, family.local_world_size)
    _require(environ, names)
    rank, world_size, local_rank, local_world_size = (_integer(environ, name) for name in names)
    address = environ.get("MASTER_ADDR") or _master_addr(environ, world_size, local_world_size)
    # Open MPI names every job (PMIX_NAMESPACE), hydra does not: two of its jobs on one machine need MASTER_PORT.
    job = environ.get("PMIX_NAMESPACE") or environ.get("SLURM_JOB_ID")
    default = _job_port(zlib.crc32(job.encode())) if job else DEFAULT_MASTER_PORT
    return _checked(
        RankEnvironment(rank, local_rank, world_size, local_world_size, address, _port(environ, default), family.name),
        names,
    )


def _is_srun_task(environ: Mapping[str, str]) -> bool:
    """Whether srun started this very process as one of its tasks.

    A shell of salloc or sbatch has SLURM_* variables too (SLURM_PROCID=0 and the job's SLURM_NTASKS), but its step id
    is missing or reserved; a shell of ``srun --pty`` is task 0 of a step whose other tasks wait for the terminal.
    """
    if "SLURM_PROCID" not in environ or "SLURM_STEP_ID" not in environ or "SLURM_PTY_PORT" in environ:
        return False
    return _integer(environ, "SLURM_STEP_ID") < _FIRST_RESERVED_STEP


def _from_srun(environ: Mapping[str, str]) -> RankEnvironment:
    size_name = next((name for name in ("SLURM_STEP_NUM_TASKS", "SLURM_NTASKS") if name in environ), "SLURM_NTASKS")
    _require(environ, ("SLURM_PROCID", "SLURM_LOCALID", size_name))
    rank, local_rank = _integer(environ, "SLURM_PROCID"), _integer(environ, "SLURM_LOCALID")
    world_size = _integer(environ, size_name)
    local_world_size = _srun_local_world_size(environ, world_size)
    address = environ.get("MASTER_ADDR") or _master_addr(environ, world_size, local_world_size)
    job = _integer(environ, "SLURM_JOB_ID") if "SLURM_JOB_ID" in environ else 0
    # Two steps of one job may run side by side: each gets its own port.
    port = _port(environ, _job_port(job * 17 + _integer(environ, "SLURM_STEP_ID")))
    return _checked(
        RankEnvironment(rank, local_rank, world_size, local_world_size, address, port, "srun"),
        ("SLURM_PROCID", size_name, "SLURM_LOCALID", "SLURM_STEP_TASKS_PER_NODE"),
    )


def _srun_local_world_size(environ: Mapping[str, str], world_size: int) -> int:
    """Tasks of the step on this node, from e.g. SLURM_STEP_TASKS_PER_NODE='8(x2),4' and SLURM_NODEID=2."""
    text = environ.get("SLURM_STEP_TASKS_PER_NODE") or environ.get("SLURM_TASKS_PER_NODE")
    if not text:
        return world_size
    counts: list[int] = []
    for part in text.split(","):
        match = re.fullmatch(r"(\d+)(?:\(x(\d+)\))?", part.strip())
        if not match:
            raise ParallelError(f"SLURM_STEP_TASKS_PER_NODE={text!r} is not of the form '8(x2),4'")
        counts += [int(match[1])] * int(match[2] or 1)
    node = _integer(environ, "SLURM_NODEID") if "SLURM_NODEID" in environ else 0
    return counts[node] if node < len(counts) else world_size


def _master_addr(environ: Mapping[str, str], world_size: int, local_world_size: int) -> str:
    if world_size == 1 or local_world_size == world_size:
        return LOOPBACK
    for name in ("SLURM_STEP_NODELIST", "SLURM_NODELIST", "SLURM_JOB_NODELIST"):
        if environ.get(name):
            return first_host(environ[name])
    raise ParallelError(
        f"MASTER_ADDR is not set and the {world_size} ranks are on several machines; set it to the host of rank 0 for "
        "all ranks (Open MPI: mpiexec -x MASTER_ADDR=HOST, MPICH: mpiexec -genv MASTER_ADDR HOST)"
    )


def _job_port(number: int) -> int:
    """A port below the ephemeral range that all ranks of one job compute alike."""
    return 20_000 + number % 10_000


def _port(environ: Mapping[str, str], default: int) -> int:
    if not environ.get("MASTER_PORT"):
        return default
    port = _integer(environ, "MASTER_PORT")
    if not 0 < port < 65_536:
        raise ParallelError(f"MASTER_PORT={port} is not a port; choose one between 1024 and 65535")
    return port


def _integer(environ: Mapping[str, str], name: str) -> int:
    text = environ[name].strip()
    if not re.fullmatch(r"\d{1,10}", text):
        raise ParallelError(f"{name}={environ[name]!r} in the environment must be an integer of 0 or more")
    return int(text)


def _require(environ: Mapping[str, str], names: tuple[str, ...]) -> None:
    missing = [name for name in names if name not in environ]
    if missing:
        present = ", ".join(f"{name}={environ[name]}" for name in names if name in environ)
        raise ParallelError(
            f"{' and '.join(missing)} not set in the environment although {present} is; start all ranks with one "
            f"launcher, or unset these variables to run alone"
        )


def _checked(ranks: RankEnvironment, names: tuple[str, str, str, str]) -> RankEnvironment:
    rank_name, size_name, local_name, local_size_name = names
    if ranks.rank >= ranks.world_size:
        raise ParallelError(
            f"{rank_name}={ranks.rank} must be below {size_name}={ranks.world_size}; ranks count from 0, and every "
            "process of a run must be given the same size"
        )
    if ranks.local_rank >= ranks.local_world_size or ranks.local_world_size > ranks.world_size:
        sizes = {local_name: ranks.local_rank, local_size_name: ranks.local_world_size, size_name: ranks.world_size}
        *others, last = (f"{name}={value}" for name, value in sizes.items())
        found = f"{', '.join(others)} and {last}"
        raise ParallelError(f"{found} contradict each other; start all ranks with one launcher")
    return ranks
