"""Who writes where: no byte of a file is two ranks', none is nobody's, and nothing is written through a link."""

import os
import random
from pathlib import Path

import pytest

from megadeberta.checkpoint import CheckpointStore
from megadeberta.checkpoint.shares import PAGE, Place, ShareSize, plan_shares, whole_pages
from megadeberta.checkpoint.stages import save_at_once
from megadeberta.errors import StorageError
from megadeberta.host import machine_id
from tests.unit.checkpoint.rank_threads import ThreadCollectives, on_ranks, run_record, save, share


def _sizes(ranks: int, machine_of: list[str]) -> list[ShareSize]:
    generator = random.Random(ranks)
    return [
        ShareSize(machine_of[rank], PAGE * generator.randint(1, 3), PAGE * generator.randint(1, 99))
        for rank in range(ranks)
    ]


@pytest.mark.parametrize(
    "machine_of",
    [
        ["a"],
        ["a", "a"],
        ["a", "b"],
        ["b", "b", "a", "a"],
        ["a", "b", "a", "b", "c"],  # ranks dealt out over the machines
        [f"machine {rank // 8}" for rank in range(1024)],
        [f"machine {rank // 8}" for rank in range(4096)],
    ],
    ids=len,
)
def test_every_byte_of_every_file_is_one_ranks(machine_of: list[str]) -> None:
    sizes = _sizes(len(machine_of), machine_of)
    places = plan_shares(sizes)
    by_file: dict[str, list[Place]] = {}
    for place, size in zip(places, sizes, strict=True):
        assert (place.header.bytes, place.data.bytes) == (size.header, size.data)
        by_file.setdefault(place.file, []).append(place)
    machines = list(dict.fromkeys(machine_of))
    assert list(by_file) == [f"node-{number}.safetensors" for number in range(len(machines))]
    for number, (file, its) in enumerate(by_file.items()):
        assert {machine_of[places.index(place)] for place in its} == {machines[number]}, file
        extents = [place.header for place in its] + [place.data for place in its]
        assert [extent.start for extent in extents] == [0, *(extent.stop for extent in extents[:-1])]
        assert all(extent.start % PAGE == 0 for extent in extents)
        assert {place.header_bytes for place in its} == {its[-1].header.stop}
        assert [place.is_first for place in its] == [True, *[False] * (len(its) - 1)]
        assert [place.is_last for place in its] == [*[False] * (len(its) - 1), True]


def test_pages_are_whole() -> None:
    assert [whole_pages(size) for size in (0, 1, PAGE, PAGE + 1)] == [0, PAGE, PAGE, 2 * PAGE]


def test_two_machines_of_one_name_are_two(monkeypatch: pytest.MonkeyPatch) -> None:
    here, read = machine_id(), Path.read_text
    monkeypatch.setattr(Path, "read_text", lambda path: "another boot\n" if path.name == "boot_id" else read(path))
    assert machine_id() != here
    assert machine_id().split()[0] == here.split()[0]


def _link(target: Path, path: Path, *, hard: bool) -> None:
    path.unlink()
    if hard:
        os.link(target, path)
    else:
        path.symlink_to(target)


@pytest.mark.parametrize("hard", [False, True])
def test_nothing_is_written_through_a_link_in_the_place_of_a_file(tmp_path: Path, hard: bool) -> None:
    """Put there after rank 0 has made the file, which only who may write into the folder can do."""
    root, target = tmp_path / "checkpoints", tmp_path / "precious"
    target.write_bytes(b"keep me" * 10_000)
    save(root, 1)

    def body(collectives: ThreadCollectives) -> Path | None:
        def write_more(folder: Path) -> dict:
            if collectives.rank == 0:
                _link(target, folder / "node-0.safetensors", hard=hard)
            collectives.all_gather_text("")
            return {}

        store = CheckpointStore(root, collectives=collectives, keep_last=1)
        stages = store.stages(2, share(collectives.rank, 2), run=run_record(), write_more=write_more, required=True)
        return save_at_once(stages)

    for error in on_ranks(body):
        assert isinstance(error, StorageError)
        reason = "has another name too" if hard else "Too many levels of symbolic links"
        assert f"rank 0: {root}/.tmp-step-2/node-0.safetensors: {reason}" in str(error)
        assert "the newest checkpoint is step-1" in str(error)
    assert target.read_bytes() == b"keep me" * 10_000
    assert not list(root.glob(".tmp-*"))


def test_a_name_that_is_taken_before_rank_0_makes_the_file_fails_the_save(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root, target, mkdir = tmp_path / "checkpoints", tmp_path / "precious", Path.mkdir
    target.write_bytes(b"keep me")

    def plant(path: Path, *arguments: object, **options: object) -> None:
        mkdir(path, *arguments, **options)
        if path.name == ".tmp-step-2":
            (path / "node-0.safetensors").symlink_to(target)

    monkeypatch.setattr(Path, "mkdir", plant)
    for error in save(root, 2, required=True):
        assert isinstance(error, StorageError)
        assert "node-0.safetensors: File exists" in str(error)
    assert target.read_bytes() == b"keep me"


def test_a_record_that_rank_0_reads_otherwise_than_it_was_written_fails_the_save(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.pread
    monkeypatch.setattr(os, "pread", lambda fd, size, offset: real(fd, size, offset).replace(b"step", b"stop"))
    for error in save(tmp_path, 1, required=True):
        assert isinstance(error, StorageError)
        assert "rank 0 reads another record of rank 0 in " in str(error) and "the disk or its cache is bad" in str(
            error
        )
    assert not list(tmp_path.glob("*step-*"))


@pytest.mark.parametrize("change", [-1, 1])
def test_a_file_that_is_shorter_or_longer_than_its_ranks_wrote_is_not_committed(tmp_path: Path, change: int) -> None:
    def body(collectives: ThreadCollectives) -> Path | None:
        mine = share(collectives.rank, 1)
        write = mine.write

        def write_and_spoil(folder: Path, place: Place):
            written = write(folder, place)
            collectives.all_gather_text("")
            if collectives.rank == 1:
                path = folder / place.file
                os.truncate(path, path.stat().st_size + change)
            return written

        mine.write = write_and_spoil
        store = CheckpointStore(tmp_path, collectives=collectives, keep_last=1)
        return save_at_once(store.stages(1, mine, run=run_record(), required=True))

    for error in on_ranks(body):
        assert isinstance(error, StorageError)
        assert "ranks 0 to 1 wrote node-0.safetensors, rank 0 does not find its 24576 bytes" in str(error)
