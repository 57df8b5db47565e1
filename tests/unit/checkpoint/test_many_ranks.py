"""One rank's whole resume in a job of 1 024 and 4 096: found, verified and indexed, with the other ranks simulated."""

import hashlib
import io
import json
import os
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from megadeberta.checkpoint.content import CheckpointContent, RankContent
from megadeberta.checkpoint.folder import INDEX_NAME, CheckpointName, rank_file_name, tensor_file_name, write_pointer
from megadeberta.checkpoint.fragments import Fragment
from megadeberta.checkpoint.manifest import FORMAT_VERSION, MANIFEST_NAME, FileRecord, Manifest, encode_manifest
from megadeberta.checkpoint.resume import find_resumable
from tests.counting import counted_calls
from tests.unit.checkpoint.rank_threads import run_record

ELEMENTS = 1_567_828_068


class _OneOfMany:
    """The collectives of the last rank of many, all of which find what this one finds."""

    def __init__(self, ranks: int, plan: str) -> None:
        self.rank, self.world_size, self._plan = ranks - 1, ranks, plan

    def broadcast_text(self, text: str | None) -> str:
        return self._plan

    def all_gather_text(self, text: str) -> list[str]:
        return [text] * self.world_size


def _write(root: Path, ranks: int) -> None:
    """A checkpoint as ZeRO 1 cuts 1.5B parameters, about a fragment per rank; the tensors themselves are left out."""
    folder = root / "step-7"
    folder.mkdir()
    each = ELEMENTS // ranks
    files, parts = {}, []
    for rank in range(ranks):
        piece = Fragment(
            name=f"layer.{rank % 784}.weight", shape=(ranks * each,), start=rank * each, stop=(rank + 1) * each
        )
        parts.append(RankContent(fragments=(piece,), counters={"global_steps": 7}, scaler={}).model_dump_json())
        for name, text in ((rank_file_name(rank), parts[-1]), (tensor_file_name(rank), "")):
            files[name] = _put(folder / name, text, rank)
    files[INDEX_NAME] = _put(folder / INDEX_NAME, f"[{','.join(parts)}]", 0)
    manifest = Manifest(format_version=FORMAT_VERSION, step=7, created="2026", run=run_record(ranks), files=files)
    (folder / MANIFEST_NAME).write_bytes(encode_manifest(manifest))
    write_pointer(root, CheckpointName(7, 1))


def _put(path: Path, text: str, rank: int) -> FileRecord:
    path.write_text(text)
    return FileRecord(bytes=len(text), sha256=hashlib.sha256(text.encode()).hexdigest(), rank=rank)


def _counted(monkeypatch: pytest.MonkeyPatch, opened: list[str]) -> None:
    def wrap(real: Callable[..., Any]) -> Callable[..., Any]:
        return lambda path, *more, **options: (opened.append(Path(path).name), real(path, *more, **options))[1]

    monkeypatch.setattr(os, "open", wrap(os.open))
    monkeypatch.setattr(io, "open", wrap(io.open))


@pytest.mark.parametrize("ranks", [1024, 4096])
def test_a_rank_of_many_resumes_with_five_opens_few_calls_and_100_mb(
    tmp_path: Path, ranks: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    _write(tmp_path, ranks)
    collectives = _OneOfMany(ranks, json.dumps([["step-7"], [], ""]))
    opened: list[str] = []
    _counted(monkeypatch, opened)
    with counted_calls() as calls:
        point = find_resumable(tmp_path, collectives=collectives, run=run_record(ranks))
        CheckpointContent(point.folder)
    assert {MANIFEST_NAME, INDEX_NAME} < set(opened) and len(opened) <= 5, "so all ranks together: linear in ranks"
    tracemalloc.start()
    find_resumable(tmp_path, collectives=collectives, run=run_record(ranks))
    CheckpointContent(point.folder)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 100 * 10**6
    assert 0 < calls.made < 300 * ranks
