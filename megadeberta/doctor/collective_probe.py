"""One of several processes that add numbers up together, as the ranks of a run do.

    python -m megadeberta.doctor.collective_probe BACKEND      with RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT set

Ends with an error unless every process got the right sum.
"""

import datetime
import os
import sys

import torch
from torch import distributed

_TIMEOUT = datetime.timedelta(seconds=30)
_NUMBERS = 1 << 20  # long enough for NCCL's ring, not only its protocol for small messages


def add_up(backend: str) -> None:
    """Join, all-reduce 4 MiB and compare.

    Raises:
        RuntimeError: from the backend, or a wrong sum.
    """
    rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    device = torch.device("cuda", rank) if backend == "nccl" else torch.device("cpu")
    distributed.init_process_group(backend, timeout=_TIMEOUT)
    numbers = torch.full((_NUMBERS,), float(rank + 1), device=device)
    distributed.all_reduce(numbers)
    if not bool((numbers == size * (size + 1) / 2).all()):
        raise RuntimeError(f"rank {rank}: the sum over {size} processes is wrong")
    distributed.destroy_process_group()


if __name__ == "__main__":
    add_up(sys.argv[1])
