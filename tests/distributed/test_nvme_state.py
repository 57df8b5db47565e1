"""Optimizer states in files on NVMe: checkpoints hold them, and a run goes on with or without the files.

DeepSpeed's swapping is real; the reads and writes go through Python instead of libaio unless the campaign runs.
"""

from pathlib import Path
from types import SimpleNamespace

import deepspeed
import numpy as np
import pytest
import torch
from deepspeed.ops.op_builder import AsyncIOBuilder
from deepspeed.runtime.engine import DeepSpeedEngine
from torch import Tensor

from megadeberta.checkpoint import find_resumable
from megadeberta.checkpoint.stages import save_at_once
from megadeberta.engine.state.save_load import load_checkpoint, save_stages
from tests.distributed.checkpoint_toy import collectives, open_store, quiet, run_record, state_of, train
from tests.ranks import run_ranks

WIDTH = 1024
"""DeepSpeed swaps what is at least 1 MiB: half of a square layer on each of two ranks, not the other layers."""
PIPELINED = {"pipeline_read": True, "pipeline_write": True}


class _FileHandle:
    """What DeepSpeed 0.19.8 asks of its async_io handle, done at once."""

    def __init__(self, **settings: object) -> None:
        self._done = 0
        self._locked: set[int] = set()

    def new_cpu_locked_tensor(self, count: int, like: Tensor) -> Tensor:
        tensor = torch.empty(count, dtype=like.dtype)
        self._locked.add(tensor.untyped_storage().data_ptr())
        return tensor

    def free_cpu_locked_tensor(self, tensor: Tensor) -> None:
        self._locked.discard(tensor.untyped_storage().data_ptr())

    def is_pinned(self, tensor: Tensor) -> bool:
        return tensor.untyped_storage().data_ptr() in self._locked

    def async_pread(self, buffer: Tensor, path: str, offset: int) -> int:
        buffer.numpy()[:] = np.fromfile(path, buffer.numpy().dtype, buffer.numel(), offset=offset)
        self._done += 1
        return 0

    def async_pwrite(self, buffer: Tensor, path: str, offset: int) -> int:
        buffer.numpy().tofile(path)
        self._done += 1
        return 0

    def wait(self) -> int:
        done, self._done = self._done, 0
        return done


def _engine(folder: str, zero: dict, seed: int) -> DeepSpeedEngine:
    quiet()
    torch.manual_seed(seed)
    model = torch.nn.Sequential(
        torch.nn.Linear(8, WIDTH),
        torch.nn.Linear(WIDTH, WIDTH),
        torch.nn.Dropout(0.2),
        torch.nn.Linear(WIDTH, WIDTH),
        torch.nn.Linear(WIDTH, 4),
    )
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    offload = {"offload_optimizer": {"device": "nvme", "nvme_path": folder, "buffer_count": 12, **zero}} if zero else {}
    config = {
        "train_micro_batch_size_per_gpu": 2,
        # Each large layer is a sub-group, and torch's AdamW does, which needs no build.
        "zero_optimization": {"stage": 3, "sub_group_size": WIDTH * WIDTH // 2, **offload},
        "zero_force_ds_cpu_optimizer": False,
        "gradient_clipping": 1.0,
        "steps_per_print": 1_000_000,
    }
    return deepspeed.initialize(model=model, optimizer=optimizer, config=config)[0]


def _run(rank: int, world_size: int, folder: str, zero: dict, stop: int, *, real: bool) -> list[str]:
    """Resume if there is a checkpoint, save one at the second step, and go on until ``stop``: losses."""
    if not real:
        AsyncIOBuilder.load = lambda self: SimpleNamespace(aio_handle=_FileHandle)
    engine = _engine(f"{folder}/nvme", zero, seed=stop)
    state, store, run = state_of(engine), open_store(f"{folder}/run"), run_record(world_size, 3)
    if zero:
        numbers = range(len(engine.optimizer.fp32_partitioned_groups_flat))
        swapped = [engine.optimizer._swappable_optimizer_subgroup(number) for number in numbers]
        assert 2 <= sum(swapped) < len(swapped), swapped
    point = find_resumable(Path(f"{folder}/run"), collectives=collectives(), run=run)
    if point is not None:
        load_checkpoint(state, point, collectives=collectives())
        return train(engine, stop - engine.global_steps)
    train(engine, 2)
    save_at_once(save_stages(state, store, 2, run=run, collectives=collectives(), required=True))
    return train(engine, stop - 2)


def _run_files(rank: int, world_size: int, folder: str, zero: dict, stop: int) -> list[str]:
    return _run(rank, world_size, folder, zero, stop, real=False)


def _run_libaio(rank: int, world_size: int, folder: str, zero: dict, stop: int) -> list[str]:
    return _run(rank, world_size, folder, zero, stop, real=True)


def _check(run, folder: Path, way: dict) -> None:
    whole = run_ranks(run, 2, str(folder), way, 5, timeout=240.0)
    assert run_ranks(run, 2, str(folder), way, 5, timeout=240.0) == whole, "resumed in files"
    # Without files only the order differs in which the gradient norm is added up.
    (memory, _) = run_ranks(run, 2, str(folder), {}, 5)
    assert [float.fromhex(loss) for loss in memory] == pytest.approx([float.fromhex(loss) for loss in whole[0]], 1e-5)
    assert memory[0] == whole[0][0], "the first loss after loading has no rounding of its own"


@pytest.mark.parametrize("way", [{"fast_init": False}, PIPELINED], ids=["one by one", "pipelined"])
def test_a_run_with_its_state_in_files_resumes_bit_for_bit_and_without_the_files_too(tmp_path: Path, way: dict) -> None:
    _check(_run_files, tmp_path, way)


def test_a_run_without_files_goes_on_with_its_state_in_files(tmp_path: Path) -> None:
    whole = run_ranks(_run_files, 2, str(tmp_path), {}, 4)
    resumed = run_ranks(_run_files, 2, str(tmp_path), PIPELINED, 4)
    assert resumed[0][0] == whole[0][0]
    assert float.fromhex(resumed[0][1]) == pytest.approx(float.fromhex(whole[0][1]), 1e-5)


@pytest.mark.campaign
@pytest.mark.skipif(not AsyncIOBuilder().is_compatible(), reason="needs libaio: apt install libaio-dev")
def test_libaio_gives_the_same(tmp_path: Path) -> None:
    AsyncIOBuilder().load()  # built once, not by two ranks at a time
    _check(_run_libaio, tmp_path, PIPELINED)
