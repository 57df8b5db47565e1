"""A real two-rank ZeRO-1 run whose checkpoints are frozen, flipped, filled with pickles, cut short and killed."""

import os
import pickle
import random
import re
import resource
import shutil
import signal
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
import torch

from megadeberta.checkpoint import SingleProcess, find_resumable, verify_checkpoint
from megadeberta.checkpoint.durable import hash_file
from megadeberta.checkpoint.folder import read_pointer
from megadeberta.checkpoint.manifest import FileRecord, encode_manifest, read_manifest
from megadeberta.checkpoint.rank_share import RankShare
from megadeberta.checkpoint.stages import save_at_once
from megadeberta.engine.state.optimizer_state import OptimizerState
from megadeberta.engine.state.save_load import load_checkpoint, refuse_unsaved_state, save_stages
from megadeberta.errors import CheckpointError, ConfigError, StorageError
from megadeberta.storage import write_file
from tests.distributed.checkpoint_toy import build_engine, collectives, open_store, run_record, state_of, train
from tests.ranks import RankFailedError, run_ranks

# Frozen at random instants


def _save_until_told(rank: int, world_size: int, root: str, control: str, delay: float) -> int:
    """Train a step and save, again and again; rank 1 writes its tensors ``delay`` seconds late."""
    engine = build_engine()
    write = RankShare.write

    def write_late(*arguments: Any) -> Any:
        time.sleep(delay if rank == 1 else 0.0)
        return write(*arguments)

    RankShare.write = write_late
    store, ranks = open_store(root), collectives()
    pids = ranks.all_gather_text(str(os.getpid()))
    if rank == 0:
        write_file(Path(control) / "pids", " ".join(pids).encode())
    step = 0
    while not ranks.broadcast_text("stop" if (Path(control) / "stop").exists() else ""):
        train(engine, 1)
        step += 1
        save_at_once(save_stages(state_of(engine), store, step, run=run_record(world_size), collectives=collectives()))
    return step


@contextmanager
def _saving_run(root: Path, control: Path, delay: float) -> Iterator[tuple[list[int], Future[list[int]]]]:
    """The process ids of the two ranks while they save, and what they return in the end."""
    control.mkdir()
    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(run_ranks, _save_until_told, 2, str(root), str(control), delay, timeout=300)
        pids: list[int] = []
        try:
            while not future.done() and not (control / "pids").exists():
                time.sleep(0.02)
            assert not future.done(), future.result()
            pids += [int(pid) for pid in (control / "pids").read_text().split()]
            yield pids, future
        finally:
            (control / "stop").touch()
            for pid in pids:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGCONT)


def _freeze(pids: list[int]) -> None:
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    for pid in pids:
        while Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "T":
            time.sleep(0.0005)


@pytest.mark.parametrize("instants", [100, pytest.param(300, marks=pytest.mark.campaign)])
def test_at_every_instant_of_a_save_the_pointer_leads_to_a_whole_checkpoint(
    tmp_path: Path, instants: int, caplog: pytest.LogCaptureFixture
) -> None:
    root, generator = tmp_path / "checkpoints", random.Random(13)
    unfinished, steps = 0, [0]
    with _saving_run(root, tmp_path / "control", delay=0.2) as (pids, future):
        for _ in range(instants):
            time.sleep(generator.uniform(0.0, 0.25))
            _freeze(pids)
            unfinished += any(root.glob(".tmp-step-*"))
            point = find_resumable(root, collectives=SingleProcess(), run=run_record(2))
            steps.append(point.step if point is not None else 0)
            if not (root / "latest").exists():
                # Between the rename of the first checkpoint and the pointer: found without it, with a warning.
                caplog.clear()
            # Before the very first commit there is no pointer and nothing that looks like a checkpoint.
            assert point is not None or not list(root.glob("step-*"))
            for folder in root.glob("step-*"):
                verify_checkpoint(folder)
            for pid in pids:
                os.kill(pid, signal.SIGCONT)
    assert future.result()[0] >= steps[-1]
    assert steps == sorted(steps)
    assert steps[-1] >= instants // 10
    assert unfinished >= instants // 4  # the instants did fall into saves
    # The one thing that may be said: a commit was caught between the rename and the new pointer.
    assert [text for text in caplog.messages if "newer folders are left alone" not in text] == []


# One real checkpoint, damaged


def _make(rank: int, world_size: int, root: str) -> list[str]:
    engine, store = build_engine(), open_store(root)
    losses = []
    for step in (1, 2, 3):
        losses += train(engine, 1)
        save_at_once(
            save_stages(
                state_of(engine), store, step, run=run_record(world_size), collectives=collectives(), required=True
            )
        )
    return losses


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[list[str]]]:
    """Steps 2 and 3 of a run that keeps two, and the losses of its steps per rank."""
    root = tmp_path_factory.mktemp("made") / "checkpoints"
    return root, run_ranks(_make, 2, str(root))


@pytest.fixture
def root(made: tuple[Path, list[list[str]]], tmp_path: Path) -> Path:
    """A copy to damage."""
    shutil.copytree(made[0], tmp_path / "checkpoints")
    return tmp_path / "checkpoints"


@pytest.mark.parametrize("flips", [100, pytest.param(400, marks=pytest.mark.campaign)])
def test_single_bit_flips_over_all_files_are_all_found(root: Path, flips: int) -> None:
    generator = random.Random(17)
    names = sorted(path.name for path in (root / "step-3").iterdir())
    assert names == ["index.json", "manifest.json", "node-0.safetensors"]
    for index in range(flips):
        path = root / "step-3" / names[index % len(names)]
        whole = path.read_bytes()
        damaged = bytearray(whole)
        bit = generator.randrange(len(whole) * 8)
        damaged[bit // 8] ^= 1 << bit % 8
        path.write_bytes(damaged)
        point = find_resumable(root, collectives=SingleProcess(), run=run_record(2))
        assert point is not None, f"{path}, bit {bit}"
        assert point.step == 2, f"{path}, bit {bit}"
        path.write_bytes(whole)


def _resume(rank: int, world_size: int, root: str) -> tuple[int, list[str]]:
    engine = build_engine(seed=5)
    point = find_resumable(Path(root), collectives=collectives(), run=run_record(world_size))
    assert point is not None
    load_checkpoint(state_of(engine), point, collectives=collectives())
    return point.step, train(engine, 3 - point.step)


def test_after_damage_the_run_goes_on_from_the_previous_checkpoint_exactly(
    made: tuple[Path, list[list[str]]], root: Path
) -> None:
    path = root / "step-3" / "node-0.safetensors"
    path.write_bytes(path.read_bytes()[:-7])
    for rank, (step, losses) in enumerate(run_ranks(_resume, 2, str(root))):
        assert step == 2
        assert losses == made[1][rank][2:]


class _Touch:
    """Unpickling it freely would create the file."""

    def __init__(self, marker: str) -> None:
        self._marker = marker

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.system, (f"touch {self._marker}",)


def _plant(folder: Path, name: str, content: bytes) -> None:
    """What an attacker would do: another file, and a manifest that says so."""
    manifest = read_manifest(folder)
    (folder / name).write_bytes(content)
    record = FileRecord.of_one(hash_file(folder / name), 0)
    changed = manifest.model_copy(update={"files": {**manifest.files, name: record}})
    (folder / "manifest.json").write_bytes(encode_manifest(changed))


def _try_payloads(rank: int, world_size: int, root: str, marker: str) -> list[str]:
    engine, ranks, messages = build_engine(), collectives(), []
    folder = Path(root) / "step-3"
    for name in sorted(read_manifest(folder).files):
        for kind in ("pickle", "torch file"):
            whole, manifest = (folder / name).read_bytes(), (folder / "manifest.json").read_bytes()
            ranks.all_gather_text("")
            if rank == 0:
                source = folder.parent / "payload"
                if kind == "torch file":
                    torch.save({"more": _Touch(marker)}, source)
                else:
                    source.write_bytes(pickle.dumps(_Touch(marker), protocol=2))
                _plant(folder, name, source.read_bytes())
                source.unlink()
            ranks.all_gather_text("")
            point = find_resumable(Path(root), collectives=ranks, run=run_record(world_size))
            assert point is not None
            assert point.step == 3
            try:
                load_checkpoint(state_of(engine), point, collectives=ranks)
                messages.append(f"{name}: loaded")
            except CheckpointError as error:
                messages.append(f"{name}: {error}")
            ranks.all_gather_text("")
            if rank == 0:
                (folder / name).write_bytes(whole)
                (folder / "manifest.json").write_bytes(manifest)
            ranks.all_gather_text("")
    return messages


def test_a_payload_in_any_file_is_executed_by_no_rank_and_refused_where_it_is_read(root: Path, tmp_path: Path) -> None:
    marker = tmp_path / "executed"
    first, second = run_ranks(_try_payloads, 2, str(root), str(marker))
    assert not marker.exists()
    assert first == second
    assert len(first) == 4  # two kinds of payload in the index and in the tensors
    for text in first:
        name = text.split(":")[0]
        assert re.search(rf"/step-3/{re.escape(name)}: (cannot be read as tensors|is no index of tensors)", text), text


# The disk refuses, a rank dies


def _write_less_and_less(rank: int, world_size: int, root: str, limits: list[int]) -> list[str]:
    """Rank 1 may write files of ``limit`` bytes only; the kernel refuses the rest."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    engine, store = build_engine(), open_store(root)
    results = []
    for step, limit in enumerate(limits, start=1):
        train(engine, 1)
        if rank == 1:
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
        try:
            committed = save_at_once(
                save_stages(state_of(engine), store, step, run=run_record(world_size), collectives=collectives())
            )
            results.append(committed.name if committed is not None else "skipped")
        except StorageError as error:
            results.append(str(error))
        if rank == 1:
            resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    return results


def test_a_rank_that_cannot_write_makes_all_ranks_skip_and_then_stop(tmp_path: Path) -> None:
    enough, root = 10**9, tmp_path / "checkpoints"
    limits = [enough, 0, 1500, enough, 100, 700, 1500, enough]
    first, second = run_ranks(_write_less_and_less, 2, str(root), limits)
    assert first == second
    assert first[:6] == ["step-1", "skipped", "skipped", "step-4", "skipped", "skipped"]
    assert re.search(
        r"checkpoint of step 7 could not be written: rank 1: .*File too large; the newest checkpoint is st",
        first[6],
    )
    assert first[7] == "step-8"
    assert sorted(path.name for path in root.iterdir()) == ["latest", "step-4", "step-8"]
    verify_checkpoint(root / "step-4")
    verify_checkpoint(root / "step-8")


def _die_in_a_save(rank: int, world_size: int, root: str) -> None:
    engine, store = build_engine(), open_store(root)
    train(engine, 1)
    save_at_once(
        save_stages(state_of(engine), store, 1, run=run_record(world_size), collectives=collectives(), required=True)
    )
    if rank == 1:
        RankShare.write = lambda *arguments: os.kill(os.getpid(), signal.SIGKILL)
    save_at_once(
        save_stages(state_of(engine), store, 2, run=run_record(world_size), collectives=collectives(), required=True)
    )


def test_a_rank_killed_in_a_save_ends_the_others_and_leaves_the_previous_checkpoint(tmp_path: Path) -> None:
    started = time.monotonic()
    # Whichever is seen first: that rank 1 is gone, or that rank 0 has lost it.
    with pytest.raises((RankFailedError, RuntimeError), match=r"rank 1 died without a word|Connection (reset|closed)"):
        run_ranks(_die_in_a_save, 2, str(tmp_path))
    assert time.monotonic() - started < 60  # of the 300 that it may take
    assert read_pointer(tmp_path) == "step-1"
    assert not (tmp_path / "step-2").exists()
    point = find_resumable(tmp_path, collectives=SingleProcess(), run=run_record(2))
    assert point is not None
    assert point.step == 1


def _resume_error(rank: int, world_size: int, root: str) -> str:
    engine, ranks = build_engine(), collectives()
    point = find_resumable(Path(root), collectives=ranks, run=run_record(world_size))
    assert point is not None
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(state_of(engine), point, collectives=ranks)
    return str(caught.value)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (b'"F32"', b'"I32"', r"rank-\d/weight/\S+ is I32 \[\d+\], its index says F32 \[\d+\]"),
        (b'"rank-1/weight/', b'"rank-2/weight/', r"cannot be read as tensors \(.*rank-1/weight/"),
    ],
)
def test_tensors_that_are_not_what_their_index_says_stop_all_ranks(
    root: Path, old: bytes, new: bytes, message: str
) -> None:
    folder, name = root / "step-3", "node-0.safetensors"
    content = (folder / name).read_bytes()
    assert old in content
    _plant(folder, name, content.replace(old, new))
    first, second = run_ranks(_resume_error, 2, str(root))
    assert first == second
    assert re.search(rf"/step-3/node-0\.safetensors: {message}", first), first


def _refuse_partial_offload(rank: int, world_size: int) -> None:
    engine = build_engine()
    refuse_unsaved_state(engine)
    engine.zero_partial_offload = lambda: 0.5
    refuse_unsaved_state(engine)


def test_an_option_that_keeps_state_outside_of_checkpoints_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"offload_optimizer\.ratio is set: DeepSpeed would keep .* remove it from"):
        run_ranks(_refuse_partial_offload, 1)


def test_an_optimizer_whose_state_is_elsewhere_is_refused() -> None:
    class Elsewhere:
        optimizer = basic_optimizer = None

    engine = Elsewhere()
    engine.optimizer = object()
    with pytest.raises(ConfigError, match=r"makes DeepSpeed use object, whose state .* leave out the option"):
        OptimizerState(engine, [])
