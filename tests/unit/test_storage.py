"""Files that appear whole, and the lock of a file."""

import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from megadeberta.errors import EXIT_USAGE, StorageError, WrongPlaceError
from megadeberta.storage import PendingFile, refuse_link, take_lock, write_file


def test_a_replaced_file_is_whole_and_a_stale_temporary_one_is_no_obstacle(tmp_path: Path) -> None:
    (tmp_path / ".tmp-latest").write_text("stale")
    write_file(tmp_path / "latest", b"one\n")
    write_file(tmp_path / "latest", b"two\n")
    assert (tmp_path / "latest").read_bytes() == b"two\n"
    assert os.listdir(tmp_path) == ["latest"]


@pytest.mark.parametrize("plant", [Path.symlink_to, Path.hardlink_to])
@pytest.mark.parametrize("name", ["latest", ".tmp-latest"])
def test_a_link_planted_at_a_name_is_replaced_and_its_target_untouched(
    tmp_path: Path, plant: Callable[[Path, Path], None], name: str
) -> None:
    precious = tmp_path / "precious"
    precious.write_text("keep me")
    plant(tmp_path / name, precious)
    write_file(tmp_path / "latest", b"one\n")
    assert precious.read_text() == "keep me"
    assert (tmp_path / "latest").read_bytes() == b"one\n"
    assert not (tmp_path / "latest").is_symlink()


@pytest.mark.parametrize("plant", [Path.symlink_to, Path.hardlink_to])
def test_what_is_written_in_place_must_have_one_name(tmp_path: Path, plant: Callable[[Path, Path], None]) -> None:
    (tmp_path / "own").touch()
    refuse_link(tmp_path / "own")
    refuse_link(tmp_path / "none")
    refuse_link(tmp_path)
    plant(tmp_path / "planted", tmp_path / "own")
    with pytest.raises(OSError, match="a link to something elsewhere, which is not written to; remove it"):
        refuse_link(tmp_path / "planted")


def test_a_pending_file_is_not_there_until_it_is_published_and_leaves_nothing_when_discarded(tmp_path: Path) -> None:
    pending = PendingFile(tmp_path / "a")
    pending.write(b"tokens")
    pending.finish()
    assert os.listdir(tmp_path) == [".tmp-a"]
    pending.discard()
    assert os.listdir(tmp_path) == []


def test_what_a_pending_file_replaces_stays_before_what_is_appended_later(tmp_path: Path) -> None:
    pending = PendingFile(tmp_path / "a")
    pending.write(b"....body")
    pending.replace(b"head", 0)
    pending.write(b" tail")
    pending.finish()
    pending.publish()
    assert (tmp_path / "a").read_bytes() == b"headbody tail"


def test_a_write_that_fails_leaves_the_old_file_and_says_what_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_file(tmp_path / "a", b"old")

    def refuse(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", refuse)
    with pytest.raises(StorageError, match=r"cannot write .*/a: No space left on device \(more bytes needed, \d+ free"):
        write_file(tmp_path / "a", b"new")
    assert os.listdir(tmp_path) == ["a"]
    assert (tmp_path / "a").read_bytes() == b"old"


def test_a_folder_of_others_is_a_mistake_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "replace", refuse)
    with pytest.raises(WrongPlaceError, match="Permission denied; choose a folder this user may write to"):
        write_file(tmp_path / "a", b"")


def test_a_name_that_cannot_be_is_a_mistake_and_no_fault_of_the_disk(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(WrongPlaceError, match=r"cannot write .*/file/a/b: .*/file is a file; choose another name"):
        write_file(tmp_path / "file" / "a" / "b", b"")
    (tmp_path / "folder").mkdir()
    with pytest.raises(WrongPlaceError, match=r"/folder: Is a directory; choose another name"):
        write_file(tmp_path / "folder", b"")
    with pytest.raises(WrongPlaceError, match="File name too long; choose another name"):
        write_file(tmp_path / ("x" * 300), b"")
    assert WrongPlaceError.exit_code == EXIT_USAGE
    assert sorted(os.listdir(tmp_path)) == ["file", "folder"]


def test_a_lock_is_held_once_and_free_when_its_descriptor_is_closed(tmp_path: Path) -> None:
    (tmp_path / "lock").touch()
    first, second = (os.open(tmp_path / "lock", os.O_RDONLY) for _ in range(2))
    try:
        assert take_lock(first)
        began = time.monotonic()
        assert not take_lock(second, wait_seconds=0.3)
        assert 0.3 <= time.monotonic() - began < 5
        os.close(first)
        assert take_lock(second, wait_seconds=0.0)
    finally:
        os.close(second)
