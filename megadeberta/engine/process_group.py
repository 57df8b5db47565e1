"""The process group, started by any launcher, with the configured timeout on every group; the threads of a rank."""

import datetime
import os
from collections.abc import Mapping

import deepspeed
import torch
from deepspeed.accelerator import get_accelerator
from torch import distributed

from megadeberta.errors import ParallelError


def start_process_group(timeout_seconds: float) -> torch.device:
    """Join the job described by RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT; return this rank's device.

    Raises:
        ParallelError: the rendezvous failed (port in use, unreachable master, peers missing), or there are more ranks
            than devices on this machine.
    """
    leave_out_shared_memory()
    accelerator = get_accelerator()
    if accelerator.device_name() != "cpu":
        accelerator.set_device(device_index(os.environ, visible=accelerator.device_count()))
    try:
        deepspeed.init_distributed(
            dist_backend=accelerator.communication_backend_name(),
            auto_mpi_discovery=False,
            verbose=False,
            timeout=datetime.timedelta(seconds=timeout_seconds),
        )
    except (RuntimeError, distributed.DistError, OSError) as error:
        address = f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"
        reason = str(error).splitlines()[0]
        raise ParallelError(
            f"the {os.environ['WORLD_SIZE']} ranks could not meet at {address}: {reason}; if the port is in use, "
            "set MASTER_PORT to a free one; if ranks are missing, check that all were started"
        ) from error
    return torch.device(accelerator.current_device_name())


def leave_out_shared_memory() -> None:
    """Let DeepSpeed start without the shared-memory all-reduce that it compiles on a CPU at the first start.

    Its collectives spin without a timeout, so one dead rank would hang the others forever.
    """
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False


def device_index(environ: Mapping[str, str], *, visible: int) -> int:
    """Which of the ``visible`` devices is this rank's: that of its local rank, or the only one that it was shown.

    Raises:
        ParallelError: there is none for it.
    """
    local_rank = int(environ["LOCAL_RANK"])
    if local_rank < visible:
        return local_rank
    # `srun --gpus-per-task=1` and its like give each rank a device of its own, which is number 0 there.
    if visible == 1 and any(name.endswith("_VISIBLE_DEVICES") for name in environ):
        return 0
    raise ParallelError(
        f"local rank {local_rank} sees {visible} GPUs, and each rank needs one: start no more per machine. "
        "Under srun give --gpus-per-node=N (each task sees all) or --gpus-per-task=1 (each task sees its own)"
    )


def choose_threads(configured: int | None, local_ranks: int) -> int:
    """CPU threads of this rank: as configured, else as OMP_NUM_THREADS says, else its share of the cores it may use."""
    if configured is not None:
        return configured
    if os.environ.get("OMP_NUM_THREADS"):
        return torch.get_num_threads()  # torch has read it, lists of numbers too
    return max(1, len(os.sched_getaffinity(0)) // local_ranks)


def apply_timeout(timeout_seconds: float) -> None:
    """Set the timeout on every existing group; DeepSpeed 0.19.8's ``new_group`` drops it, leaving 30 minutes."""
    timeout = datetime.timedelta(seconds=timeout_seconds)
    for group in list(distributed.distributed_c10d._world.pg_map):
        distributed.distributed_c10d._set_pg_timeout(timeout, group)
