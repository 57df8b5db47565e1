"""An output folder that the machines of a run do not share is found before anything is written for keeps."""

import re
from pathlib import Path

from megadeberta.checkpoint import SharedOutputLock
from megadeberta.checkpoint.shared_folder import check_shared
from megadeberta.errors import ParallelError
from tests.unit.checkpoint.rank_threads import ThreadCollectives, on_ranks


def test_a_shared_folder_passes_and_stays_empty(tmp_path: Path) -> None:
    assert on_ranks(lambda collectives: check_shared(tmp_path, collectives)) == [None, None]
    assert list(tmp_path.iterdir()) == []


def test_folders_that_differ_are_refused_on_every_rank_alike(tmp_path: Path) -> None:
    def check(collectives: ThreadCollectives) -> None:
        folder = tmp_path / str(collectives.rank)
        folder.mkdir()
        check_shared(folder, collectives, wait_seconds=0)

    errors = on_ranks(check, 3)
    for rank, error in enumerate(errors):
        assert isinstance(error, ParallelError)
        assert re.search(
            rf"output_dir=\S+/{rank} is not shared: \S+ does not see what rank 0 on \S+ writes", str(error)
        )
    assert list((tmp_path / "0").iterdir()) == []


def test_the_lock_of_a_job_is_given_back_when_the_folder_is_not_shared(tmp_path: Path) -> None:
    def enter(collectives: ThreadCollectives) -> None:
        with SharedOutputLock(tmp_path / str(collectives.rank), collectives):
            raise AssertionError("entered")

    (tmp_path / "1").mkdir()
    assert all(isinstance(error, ParallelError) for error in on_ranks(enter))
    (tmp_path / "1").rmdir()
    (tmp_path / "1").symlink_to("0")
    assert all(isinstance(error, AssertionError) for error in on_ranks(enter))
