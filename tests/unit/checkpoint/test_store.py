"""What the store promises: whole or invisible, whatever fails, and never the last one lost."""

import errno
import json
import os
import shutil
from collections import namedtuple
from pathlib import Path

import pytest
from safetensors.numpy import load_file

from megadeberta.checkpoint import CheckpointStore, SingleProcess, verify_checkpoint
from megadeberta.checkpoint import store as store_module
from megadeberta.checkpoint.durable import write_new_file
from megadeberta.checkpoint.folder import read_pointer
from megadeberta.checkpoint.stages import save_at_once
from megadeberta.checkpoint.store import remove_leftovers
from megadeberta.errors import StorageError
from tests.unit.checkpoint.rank_threads import (
    FailingCalls,
    content,
    on_ranks,
    run_record,
    save,
    share,
    values,
    write_files,
)


def _names(root: Path) -> list[str]:
    return sorted(path.name for path in root.iterdir())


def test_a_commit_holds_the_files_of_all_ranks_and_the_pointer_names_it(tmp_path: Path) -> None:
    root = tmp_path / "out" / "checkpoints"
    results = save(root, 7)
    assert results == [[root / "step-7"], [root / "step-7"]]
    manifest = verify_checkpoint(root / "step-7")
    assert {name: [part.rank for part in record.parts] for name, record in manifest.files.items()} == {
        "own-0.txt": [0],
        "own-1.txt": [1],
        "spm.model": [0],
        "node-0.safetensors": [0, 1, 0, 1],
        "index.json": [0],
    }
    assert manifest.step == 7
    assert manifest.run == run_record()
    assert (root / "latest").read_text() == "step-7\n"
    assert (root / "step-7" / "own-1.txt").read_bytes() == content(7, "own-1.txt")
    tensors = load_file(root / "step-7" / "node-0.safetensors")
    assert (tensors.pop("rank-0/weight/weight") == values(0, 7)).all()
    assert (tensors.pop("rank-1/weight/weight") == values(1, 7)).all()
    assert json.loads((root / "step-7" / "index.json").read_bytes()) == [
        {"file": "node-0.safetensors", "content": json.loads(tensors.pop(f"rank-{rank}/record").tobytes())}
        for rank in range(2)
    ]
    assert not tensors
    assert _names(root) == ["latest", "step-7"]


def test_everything_is_on_the_disk_before_the_name_that_shows_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    events: list[str] = []
    for call in ("write", "fsync", "rename", "replace"):
        monkeypatch.setattr(os, call, _recorder(call, getattr(os, call), events, tmp_path))
    store = CheckpointStore(tmp_path / "checkpoints", collectives=SingleProcess(), keep_last=1)
    save_at_once(store.stages(1, share(0, 1), run=run_record(1), write_more=write_files(0, 1)))
    monkeypatch.undo()
    assert events.pop(0) == "fsync ."  # where the folder of checkpoints is new
    events = [event.replace("checkpoints/", "").replace("checkpoints", ".") for event in events]
    hidden = ".tmp-step-1"
    written = [
        f"{hidden}/{name}" for name in ("own-0.txt", "spm.model", "node-0.safetensors", "index.json", "manifest.json")
    ]
    expected = ["fsync ."]  # the new hidden folder
    for path in written:
        parts = 3 if path.endswith(".safetensors") else 1  # header, record and a tensor
        expected += [*[f"write {path}"] * parts, f"fsync {path}"]
    expected += [f"fsync {hidden}", f"rename {hidden} step-1", "fsync ."]
    expected += ["fsync .tmp-latest", "replace .tmp-latest latest", "fsync ."]
    assert events == expected


def _recorder(call, real, events, root):
    def record(target, *args, **options):
        path = Path(os.readlink(f"/proc/self/fd/{target}")) if isinstance(target, int) else Path(target)
        words = [call, str(path.relative_to(root))]
        if call in ("rename", "replace"):
            words.append(str(Path(args[0]).relative_to(root)))
        events.append(" ".join(words))
        return real(target, *args, **options)

    return record


def test_retention_keeps_the_newest_and_never_less_than_one(tmp_path: Path) -> None:
    save(tmp_path, 1, 2, 3, 10, keep_last=2)
    assert _names(tmp_path) == ["latest", "step-10", "step-3"]
    save(tmp_path, 11, keep_last=1)
    assert _names(tmp_path) == ["latest", "step-11"]


def test_every_kth_checkpoint_stays_beside_the_last_ones(tmp_path: Path) -> None:
    save(tmp_path, *range(1, 12), keep_last=2, keep_every=4)
    assert _names(tmp_path) == ["latest", "step-10", "step-11", "step-4", "step-8"]


def test_of_two_checkpoints_of_a_kept_step_the_newer_stays(tmp_path: Path) -> None:
    save(tmp_path, 4, 4, 5, 6, keep_last=1, keep_every=4)
    assert _names(tmp_path) == ["latest", "step-4-2", "step-6"]


def test_a_step_that_exists_is_not_overwritten_but_followed(tmp_path: Path) -> None:
    save(tmp_path, 5, 6)
    results = save(tmp_path, 6, keep_last=3)
    assert results[0] == [tmp_path / "step-6-2"]
    assert _names(tmp_path) == ["latest", "step-5", "step-6", "step-6-2"]
    assert read_pointer(tmp_path) == "step-6-2"


def test_checkpoints_of_a_future_that_the_run_went_back_from_are_left_alone(tmp_path: Path) -> None:
    save(tmp_path, 30)
    save(tmp_path, 10, 11, keep_last=1)
    assert _names(tmp_path) == ["latest", "step-11", "step-30"]
    assert read_pointer(tmp_path) == "step-11"


def test_leftovers_of_a_killed_save_and_a_killed_deletion_are_removed_by_the_next_save(tmp_path: Path) -> None:
    for name in (".tmp-step-3", ".trash-step-1"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "spm.model").write_bytes(b"half")
    (tmp_path / ".tmp-latest").write_text("ste")
    save(tmp_path, 3)
    assert _names(tmp_path) == ["latest", "step-3"]


def test_a_link_planted_at_a_hidden_name_is_removed_and_its_target_untouched(tmp_path: Path) -> None:
    root, target = tmp_path / "checkpoints", tmp_path / "precious"
    root.mkdir()
    target.mkdir()
    (target / "data").write_text("keep me")
    (root / ".tmp-step-3").symlink_to(target)
    (root / ".tmp-latest").symlink_to(target / "data")
    (root / "latest").symlink_to(target / "data")
    save(root, 3)
    assert (target / "data").read_text() == "keep me"
    assert (root / "latest").read_text() == "step-3\n"
    assert not (root / "latest").is_symlink()


@pytest.mark.parametrize("stage", ["before renaming to trash", "after renaming to trash", "while deleting"])
def test_a_kill_in_the_deletion_of_an_old_checkpoint_leaves_nothing_that_looks_whole(
    tmp_path: Path, stage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(tmp_path, 1, 2)
    real_rename, real_unlink = os.rename, os.unlink

    def rename(source, target):
        if ".trash" in str(target) and stage.startswith("before"):
            raise KeyboardInterrupt
        real_rename(source, target)
        if ".trash" in str(target) and stage.startswith("after"):
            raise KeyboardInterrupt

    def unlink(path, **options):
        real_unlink(path, **options)
        if stage.startswith("while") and str(path).endswith((".txt", ".model", ".json", ".safetensors")):
            raise KeyboardInterrupt

    monkeypatch.setattr(os, "rename", rename)
    monkeypatch.setattr(os, "unlink", unlink)
    store = CheckpointStore(tmp_path, collectives=SingleProcess(), keep_last=1)
    with pytest.raises(KeyboardInterrupt):
        save_at_once(store.stages(3, share(0, 3), run=run_record(1), write_more=write_files(0, 3)))
    monkeypatch.undo()
    for path in tmp_path.glob("step-*"):
        verify_checkpoint(path)
    assert read_pointer(tmp_path) == "step-3"
    remove_leftovers(tmp_path)
    assert not list(tmp_path.glob(".t*"))


def _count_calls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rank: int) -> int:
    counter = FailingCalls(monkeypatch, rank=rank, fail_at=-1)
    save(tmp_path / f"count-{rank}", 4)
    monkeypatch.undo()
    return len(counter.calls)


@pytest.mark.parametrize("broken_for_good", [False, True])
@pytest.mark.parametrize("rank", [0, 1])
def test_a_failing_write_fsync_or_rename_at_any_point_leaves_the_pointer_on_a_whole_checkpoint(
    tmp_path: Path, rank: int, broken_for_good: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    total = _count_calls(tmp_path, monkeypatch, rank)
    assert total >= (20 if rank == 0 else 8)
    for fail_at in range(total):
        code = (errno.ENOSPC, errno.EIO, errno.EDQUOT)[fail_at % 3]
        root = tmp_path / f"fail-{fail_at}"
        save(root, 1)
        failing = FailingCalls(monkeypatch, rank=rank, fail_at=fail_at, code=code)
        failing.broken_for_good = broken_for_good
        first, second = save(root, 4)
        monkeypatch.undo()
        assert first == second, f"ranks disagree when {failing.calls[fail_at]} {fail_at} fails: {first} {second}"
        pointed = root / read_pointer(root)
        assert verify_checkpoint(pointed).step in (1, 4)
        if first == [None]:
            assert not (root / ".tmp-step-4").exists() or broken_for_good
        save(root, 9)
        assert read_pointer(root) == "step-9"
        assert not list(root.glob(".t*"))


def test_a_failed_save_warns_and_names_file_and_cause(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    save(tmp_path, 1)
    FailingCalls(monkeypatch, rank=1, fail_at=1)
    assert save(tmp_path, 2) == [[None], [None]]
    monkeypatch.undo()
    (message,) = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert "checkpoint of step 2 could not be written: rank 1: " in message
    assert ".tmp-step-2/own-1.txt: No space left on device; the newest checkpoint is step-1" in message
    assert "TRAINING GOES ON WITHOUT A NEW CHECKPOINT (failure 1; the run stops at failure 3 in a row)" in message


def test_an_fsync_that_fails_is_told_with_its_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(target: int) -> None:
        if os.readlink(f"/proc/self/fd/{target}").endswith(".safetensors"):
            raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "fsync", refuse)
    assert save(tmp_path, 1, world_size=1) == [[None]]
    assert f"rank 0: {tmp_path}/.tmp-step-1/node-0.safetensors: Input/output error; there is no older" in caplog.text


def test_the_third_failure_in_a_row_stops_the_run(tmp_path: Path) -> None:
    def full(folder: Path) -> dict:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(folder / "spm.model"))

    store = CheckpointStore(tmp_path, collectives=SingleProcess(), keep_last=1)

    def attempt(step: int, write=full) -> Path | None:
        return save_at_once(store.stages(step, share(0, step), run=run_record(1), write_more=write))

    assert attempt(1) is None
    assert attempt(2) is None
    assert attempt(3, write_files(0, 3)) is not None
    assert attempt(4) is None
    assert attempt(5) is None
    message = r"step 6 could not be written: .*spm\.model: No space left.*newest checkpoint is step-3; free space or"
    with pytest.raises(StorageError, match=message) as caught:
        attempt(6)
    assert caught.value.exit_code == 79
    assert _names(tmp_path) == ["latest", "step-3"]


def test_a_required_save_raises_at_the_first_failure_on_every_rank(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    FailingCalls(monkeypatch, rank=1, fail_at=0, code=errno.EIO)
    for error in save(tmp_path, 2, required=True):
        assert isinstance(error, StorageError)
        assert "Input/output error; there is no older checkpoint; free space" in str(error)


def test_too_little_free_space_is_found_before_writing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10**9, 10**9 - 7_100_000, 7_100_000))

    def body(collectives):
        store = CheckpointStore(tmp_path, collectives=collectives, keep_last=1)
        return save_at_once(store.stages(2, share(collectives.rank, 2, size=10**6), run=run_record(), required=True))

    for error in on_ranks(body):
        assert isinstance(error, StorageError)
        assert f"needs 8.4 MB, 7.1 MB free on {tmp_path}" in str(error)
    assert _names(tmp_path) == []


def test_the_last_checkpoint_tells_how_much_the_next_needs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(tmp_path, 1)
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10**9, 10**9 - 1000, 1000))
    (error, _) = save(tmp_path, 2, required=True)
    total = sum(path.stat().st_size for path in (tmp_path / "step-1").iterdir() if path.name != "manifest.json")
    assert f"needs {total * 1.05 / 1000:.1f} kB, 1.0 kB free on {tmp_path}; the newest checkpoint is step-1" in str(
        error
    )


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (
            lambda folder: (folder / "stray").write_text(""),
            "stray: was put into the unfinished checkpoint by",
        ),
        (lambda folder: (folder / "own-1.txt").unlink(), "rank 1 wrote own-1.txt, rank 0 does not find its"),
    ],
)
def test_a_folder_that_is_not_what_the_ranks_wrote_is_not_committed(tmp_path: Path, spoil, message: str) -> None:
    def body(collectives):
        store = CheckpointStore(tmp_path, collectives=collectives, keep_last=1)

        def write(folder: Path) -> dict:
            files = write_files(collectives.rank, 1)(folder)
            if collectives.rank == 1:
                spoil(folder)
            return files

        return save_at_once(
            store.stages(1, share(collectives.rank, 1), run=run_record(), write_more=write, required=True)
        )

    for error in on_ranks(body):
        assert isinstance(error, StorageError)
        assert message in str(error)
    assert _names(tmp_path) == []


def test_two_ranks_that_write_the_same_name_are_an_error(tmp_path: Path) -> None:
    def body(collectives):
        store = CheckpointStore(tmp_path, collectives=collectives, keep_last=1)

        def write(folder: Path) -> dict:
            digest = write_new_file(folder / f"own-{collectives.rank}", b"x")
            return {"same.pt": digest}

        return save_at_once(
            store.stages(1, share(collectives.rank, 1), run=run_record(), write_more=write, required=True)
        )

    for error in on_ranks(body):
        assert isinstance(error, StorageError)
        assert "rank 1 wrote 'same.pt', which another rank wrote too" in str(error)


def test_what_cannot_be_deleted_keeps_no_save_from_succeeding(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    save(tmp_path, 1)
    for name in (".trash-step-1", ".tmp-step-2"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "busy").write_text("held open by somebody")

    def refuse(path: Path) -> None:
        raise OSError(errno.EBUSY, os.strerror(errno.EBUSY), str(path))

    monkeypatch.setattr(store_module, "remove_tree", refuse)
    assert save(tmp_path, 2, keep_last=1) == [[tmp_path / "step-2"], [tmp_path / "step-2"]]
    assert save(tmp_path, 3, keep_last=1) == [[tmp_path / "step-3"], [tmp_path / "step-3"]]
    verify_checkpoint(tmp_path / "step-2"), verify_checkpoint(tmp_path / "step-3")
    assert ".trash-step-1 could not be removed" in caplog.text and "Device or resource busy" in caplog.text
    assert read_pointer(tmp_path) == "step-3"


def test_a_damaged_checkpoint_is_not_kept_in_place_of_a_sound_one(tmp_path: Path) -> None:
    save(tmp_path, 1, 2, 3, keep_last=3)
    store = CheckpointStore(tmp_path, collectives=SingleProcess(), keep_last=2)
    store.damaged = frozenset({"step-3"})
    save_at_once(store.stages(3, share(0, 3), run=run_record(1), write_more=write_files(0, 3)))
    assert _names(tmp_path) == ["latest", "step-2", "step-3-2"]
