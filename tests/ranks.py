"""Run a function on N gloo ranks, forked from a server that has torch and DeepSpeed loaded already.

``spawn`` imports torch in every rank of every test; here it is imported once per test session. The function
must be at module level (it travels by name), and so must what it returns.

    def _check_sum(rank: int, world_size: int, start: int) -> int: ...

    def test_sum_is_the_same_on_all_ranks() -> None:
        assert run_ranks(_check_sum, 2, 7) == [15, 15]
"""

import ctypes
import faulthandler
import multiprocessing
import os
import pickle
import shutil
import signal
import socket
import tempfile
import time
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

PRELOAD = [
    "torch",
    "deepspeed",
    # deepspeed.initialize imports it, and with it the whole of torch.compile: 5 s in every rank.
    "deepspeed.runtime.zero.muon.original_muon",
    # What the tests' own modules import: 0.25 s in every rank.
    "pytest",
    "megadeberta.assembly",
]
_PR_SET_PDEATHSIG = 1
_GRACE_SECONDS = 3.0
"""How long the others may take to report their own error after the first rank has failed."""


class RankFailedError(AssertionError):
    """A rank raised an exception that cannot travel, died without a word, or hung."""


def run_ranks(
    function: Callable[..., Any], world_size: int, *args: Any, timeout: float = 90.0, distributed: bool = True
) -> list[Any]:
    """Call ``function(rank, world_size, *args)`` in ``world_size`` processes; give what each rank returned.

    The error of the rank that failed first is raised here with that rank's traceback and output as notes.

    Args:
        timeout: seconds until every rank is killed and ``RankFailedError`` with all stacks is raised.
        distributed: join the ranks in a gloo group first.
    """
    context = _warm_context()
    folder = Path(tempfile.mkdtemp(prefix="ranks-"))
    port = _free_port()
    pipes: list[Connection] = []
    processes = []
    try:
        for rank in range(world_size):
            receiver, sender = context.Pipe(duplex=False)
            setup = {"rank": rank, "world_size": world_size, "folder": str(folder), "port": port}
            setup |= {"timeout": timeout, "distributed": distributed, "environ": dict(os.environ), "cwd": os.getcwd()}
            process = context.Process(target=_rank_main, args=(sender, setup, function, args))
            process.start()
            sender.close()
            pipes.append(receiver)
            processes.append(process)
        return _collect(pipes, folder, timeout)
    finally:
        for process in processes:
            process.join(0.5)
            if process.is_alive():
                process.kill()
                process.join()
        for pipe in pipes:
            pipe.close()
        shutil.rmtree(folder, ignore_errors=True)


def _warm_context() -> multiprocessing.context.ForkServerContext:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOAD)
    # The server keeps the environment of its first start. One thread per library: ranks share few cores, and a
    # server without threads is safe to fork.
    fixed = {"DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    before = {name: os.environ.get(name) for name in fixed}
    os.environ.update(fixed)
    try:
        multiprocessing.forkserver.ensure_running()
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
    return context


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _collect(pipes: list[Connection], folder: Path, timeout: float) -> list[Any]:
    results: dict[int, Any] = {}
    first_error: tuple[int, dict[str, Any]] | None = None
    open_pipes = dict(zip(pipes, range(len(pipes)), strict=True))
    deadline = time.monotonic() + timeout
    while open_pipes and (ready := wait(list(open_pipes), max(0.0, deadline - time.monotonic()))):
        for pipe in ready:
            rank = open_pipes.pop(pipe)
            report = _report(pipe, rank)
            if "error" not in report:
                results[rank] = report["result"]
            # The others may see the closed connection of a dead rank before its pipe ends here: its death is the cause.
            elif first_error is None or report.get("silent"):
                first_error = rank, report
                deadline = min(deadline, time.monotonic() + _GRACE_SECONDS)
    if first_error is not None:
        rank, report = first_error
        error = report["error"]
        error.add_note(f"--- raised on rank {rank} ---\n{report['traceback']}\n{_tail(folder / f'{rank}.log')}")
        raise error
    if open_pipes:
        late = sorted(open_pipes.values())
        logs = "\n".join(f"--- rank {rank} ---\n{_tail(folder / f'{rank}.log')}" for rank in range(len(pipes)))
        raise RankFailedError(f"ranks {late} of {len(pipes)} had not finished after {timeout:g} s\n{logs}")
    return [results[rank] for rank in range(len(pipes))]


def _report(pipe: Connection, rank: int) -> dict[str, Any]:
    try:
        return pickle.loads(pipe.recv_bytes())
    except EOFError:
        return {"error": RankFailedError(f"rank {rank} died without a word"), "traceback": "", "silent": True}


def _tail(path: Path, lines: int = 60) -> str:
    text = path.read_text(errors="replace") if path.exists() else ""
    return "\n".join(text.splitlines()[-lines:])


def _rank_main(sender: Connection, setup: dict[str, Any], function: Callable[..., Any], args: tuple[Any, ...]) -> None:
    # The server dies with the test session, and the ranks with the server, kill -9 included.
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    _redirect_output(Path(setup["folder"]) / f"{setup['rank']}.log", setup["timeout"])
    try:
        report = {"result": _call(setup, function, args)}
    except BaseException as error:
        report = {"error": error, "traceback": traceback.format_exc()}
    try:
        payload = pickle.dumps(report)
        pickle.loads(payload)
    except Exception as error:
        text = report.get("traceback") or traceback.format_exc()
        shown = report.get("error", error)
        payload = pickle.dumps({"error": RankFailedError(f"{type(shown).__name__}: {shown}"), "traceback": text})
    sender.send_bytes(payload)
    sender.close()
    # Skip interpreter shutdown: a rank whose peer is gone would wait in the destructor of its process group.
    os._exit(0)


def _redirect_output(path: Path, timeout: float) -> None:
    log = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    os.dup2(log, 1)
    os.dup2(log, 2)
    faulthandler.dump_traceback_later(max(timeout - 1.0, 0.5), file=2)


def _call(setup: dict[str, Any], function: Callable[..., Any], args: tuple[Any, ...]) -> Any:
    import torch
    import torch.distributed as dist
    from deepspeed.accelerator import get_accelerator
    from deepspeed.ops import __compatible_ops__

    rank, world_size = setup["rank"], setup["world_size"]
    os.chdir(setup["cwd"])
    os.environ.clear()
    os.environ.update(setup["environ"])
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(world_size))
    os.environ.update(LOCAL_WORLD_SIZE=str(world_size), MASTER_ADDR="127.0.0.1", MASTER_PORT=str(setup["port"]))
    os.environ.update(GLOO_SOCKET_IFNAME="lo", DS_ACCELERATOR="cpu")
    torch.set_num_threads(1)
    cores = sorted(os.sched_getaffinity(0))
    if world_size > len(cores):
        # More ranks than cores wait for one another all the time; free to move, 8 on 2 cores take four times as long.
        os.sched_setaffinity(0, {cores[rank % len(cores)]})
    # DeepSpeed compiles a shared-memory all-reduce at its first start; the tests are about gloo.
    __compatible_ops__["deepspeed_shm_comm"] = False
    # DeepSpeed refuses fp16 on processors without instructions for it; torch computes in fp16 on every one.
    get_accelerator().is_fp16_supported = lambda: True
    if not setup["distributed"]:
        return function(rank, world_size, *args)
    store = dist.FileStore(f"{setup['folder']}/store", world_size)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=world_size)
    result = function(rank, world_size, *args)
    if dist.is_initialized():
        dist.barrier()
    return result
