"""Whether all ranks see one output folder: each rank writes its part of a checkpoint there, and rank 0 commits them."""

import os
import secrets
import socket
import time
from pathlib import Path

from megadeberta.checkpoint.collectives import Collectives
from megadeberta.errors import ParallelError

_RETRY_SECONDS = 0.1


def check_shared(folder: Path, collectives: Collectives, *, wait_seconds: float = 5.0) -> None:
    """Compare the folders of all ranks by a file that rank 0 puts into its own. A broadcast and an all-gather of text.

    Args:
        wait_seconds: how long a network file system may take to show the file.

    Raises:
        ParallelError: the same on every rank, naming the machines that see another folder.
    """
    if collectives.world_size == 1:
        return
    probe = folder / f".shared-{secrets.token_hex(8)}"
    if collectives.rank == 0:
        # A name that no machine has looked up yet: none can have remembered that it is not there.
        os.close(os.open(probe, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644))
    try:
        probe = folder / collectives.broadcast_text(probe.name)
        answers = collectives.all_gather_text(f"{socket.gethostname()}{'' if _appears(probe, wait_seconds) else '!'}")
    finally:
        if collectives.rank == 0:
            probe.unlink(missing_ok=True)
    blind = sorted({answer[:-1] for answer in answers if answer.endswith("!")})
    if blind:
        raise ParallelError(
            f"training.output_dir={folder} is not shared: {', '.join(blind)} does not see what rank 0 on {answers[0]} "
            "writes there; choose a folder that all machines mount at the same path"
        )


def _appears(path: Path, seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while not path.exists():
        if time.monotonic() > deadline:
            return False
        time.sleep(_RETRY_SECONDS)
    return True
