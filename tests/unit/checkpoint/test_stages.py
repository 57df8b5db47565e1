"""A save beside the caller: nothing shows before it is committed, and failures are those of a save at once."""

import errno
import os
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from megadeberta.checkpoint import CheckpointStore, Digest, SingleProcess, verify_checkpoint
from megadeberta.checkpoint.folder import read_pointer
from megadeberta.checkpoint.stages import BackgroundSave
from megadeberta.errors import StorageError
from tests.unit.checkpoint.rank_threads import ThreadCollectives, on_ranks, run_record, save, share, write_files

Write = Callable[[Path], dict[str, Digest]]


def _beside(store: CheckpointStore, step: int, write: Write, *, drop: Callable[[], None] = lambda: None, rank: int = 0):
    stages = store.stages(step, share(rank, step), run=run_record(), write_more=write)
    return BackgroundSave(step, lambda: stages, drop=drop)


def _finish(found: BackgroundSave) -> Path | None:
    while not found.is_over:
        found.advance()
    return found.committed


def _names(root: Path) -> list[str]:
    return sorted(path.name for path in root.iterdir())


def test_a_save_beside_the_caller_is_the_one_that_is_made_at_once(tmp_path: Path) -> None:
    def body(collectives: ThreadCollectives) -> Path | None:
        store = CheckpointStore(tmp_path / "beside", collectives=collectives, keep_last=1)
        for step in (7, 8):
            last = _finish(_beside(store, step, write_files(collectives.rank, step), rank=collectives.rank))
        return last

    assert on_ranks(body) == [tmp_path / "beside" / "step-8"] * 2
    save(tmp_path / "at-once", 7, 8, keep_last=1)
    beside, at_once = (verify_checkpoint(tmp_path / way / "step-8") for way in ("beside", "at-once"))
    assert beside.files == at_once.files
    assert _names(tmp_path / "beside") == _names(tmp_path / "at-once") == ["latest", "step-8"]


def test_what_is_written_shows_only_after_the_caller_has_taken_it_further(tmp_path: Path) -> None:
    may_write, has_written = threading.Event(), threading.Event()

    def write(folder: Path) -> dict[str, Digest]:
        assert may_write.wait(10)
        written = write_files(0, 3)(folder)
        has_written.set()
        return written

    found = _beside(CheckpointStore(tmp_path, collectives=SingleProcess(), keep_last=1), 3, write)
    found.advance()
    assert found.is_busy
    may_write.set()
    assert has_written.wait(10)
    assert _names(tmp_path) == [".tmp-step-3"]
    assert not found.is_over
    assert _finish(found) == tmp_path / "step-3"
    assert not found.is_busy
    assert 0 < found.waited < found.seconds
    assert _names(tmp_path) == ["latest", "step-3"]


def test_a_save_that_is_given_up_leaves_the_one_before_and_no_thread(tmp_path: Path) -> None:
    save(tmp_path, 1, world_size=1)
    dropped, is_writing = threading.Event(), threading.Event()

    def write(folder: Path) -> dict[str, Digest]:
        write_files(0, 2)(folder)
        is_writing.set()
        assert dropped.wait(10)
        raise RuntimeError("nobody hears of this one")

    before = threading.active_count()
    store = CheckpointStore(tmp_path, collectives=SingleProcess(), keep_last=2)
    found = _beside(store, 2, write, drop=dropped.set)
    found.advance()
    assert is_writing.wait(10)
    found.abandon()
    assert threading.active_count() == before
    assert found.committed is None
    assert read_pointer(tmp_path) == "step-1"
    assert _names(tmp_path) == [".tmp-step-2", "latest", "step-1"]
    save(tmp_path, 3, world_size=1)
    assert _names(tmp_path) == ["latest", "step-1", "step-3"]


def test_a_disk_that_refuses_is_reported_as_by_a_save_at_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    def full(folder: Path) -> dict[str, Digest]:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(folder / "spm.model"))

    store = CheckpointStore(tmp_path, collectives=SingleProcess(), keep_last=1)
    assert [_finish(_beside(store, step, full)) for step in (1, 2)] == [None, None]
    assert "TRAINING GOES ON WITHOUT A NEW CHECKPOINT (failure 2; " in caplog.messages[-1]
    third = _beside(store, 3, full)
    with pytest.raises(StorageError, match=r"checkpoint of step 3 could not be written: rank 0: .*No space left on de"):
        _finish(third)
    assert third.is_over
    assert _names(tmp_path) == []


def test_a_bug_on_the_thread_comes_out_where_the_caller_takes_it_further(tmp_path: Path) -> None:
    def write(folder: Path) -> dict[str, Digest]:
        raise KeyError("a bug")

    found = _beside(CheckpointStore(tmp_path, collectives=SingleProcess(), keep_last=1), 1, write)
    found.advance()
    with pytest.raises(KeyError, match="a bug"):
        found.advance()
    assert found.is_over
