"""When the server of the workers is started."""

from pathlib import Path

import pytest

from megadeberta.data_prep import pool
from megadeberta.remote.files import FilePath


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """What each server is told to load."""
    calls: list[list[str]] = []
    monkeypatch.setattr(pool, "start_server", lambda preload, *, blocked: calls.append(preload))
    return calls


def text_of(size: int, path: Path) -> Path:
    with path.open("wb") as file:
        file.truncate(size)
    return path


@pytest.mark.parametrize(("size", "workers", "servers"), [(16 << 20, 2, 1), (16 << 20, 1, 0), (1 << 20, 2, 0)])
def test_only_a_large_corpus_for_several_workers_starts_it_early(
    tmp_path: Path, started: list[list[str]], size: int, workers: int, servers: int
) -> None:
    paths: list[FilePath] = [text_of(size, tmp_path / "a.txt"), tmp_path / "missing", tmp_path]
    pool.start_early(paths, workers=workers)
    assert len(started) == servers
    assert all("megadeberta.data_prep.work" in preload for preload in started)
