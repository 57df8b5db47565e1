"""What a job of 1 024 and 4 096 ranks costs one of them, the others simulated: a commit, and a whole resume."""

import io
import json
import os
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from megadeberta.checkpoint import CheckpointStore, SingleProcess, verify
from megadeberta.checkpoint import store as store_module
from megadeberta.checkpoint.content import WEIGHT, CheckpointContent
from megadeberta.checkpoint.durable import Digest
from megadeberta.checkpoint.folder import INDEX_NAME
from megadeberta.checkpoint.fragments import Fragment
from megadeberta.checkpoint.manifest import MANIFEST_NAME
from megadeberta.checkpoint.merge import Report
from megadeberta.checkpoint.rank_share import Entry, RankContent, RankShare
from megadeberta.checkpoint.resume import find_resumable
from megadeberta.checkpoint.shares import ShareSize, plan_shares
from megadeberta.checkpoint.stages import save_at_once
from megadeberta.checkpoint.verify import verify_checkpoint, verify_share
from tests.counting import Calls, counted_calls
from tests.unit.checkpoint.rank_threads import run_record

ELEMENTS = 1_567_828_068
RANKS_OF_A_MACHINE = 8
SMALL = 16


def _share(rank: int, ranks: int) -> RankShare:
    """A fragment of 1.5B parameters as ZeRO 1 cuts them, of which the first few are in the file as another one."""
    each = ELEMENTS // ranks
    name, shape = f"layer.{rank % 784}.weight", (ranks * each,)
    large = Fragment(name=name, shape=shape, start=rank * each, stop=(rank + 1) * each)
    small = Fragment(name=name, shape=shape, start=rank * each, stop=rank * each + SMALL)
    content = RankContent(fragments=(large,), counters={"global_steps": 7}, scaler={})
    return RankShare(rank, content, [Entry(WEIGHT, small, lambda: np.full(SMALL, rank, dtype=np.float32))])


class _FirstOfMany(SingleProcess):
    """Rank 0 of a job whose other ranks write when they are asked what they have written."""

    def __init__(self, root: Path, ranks: int) -> None:
        self.root, self.ranks, self.calls = root, ranks, Calls()
        self._sizes: list[ShareSize] = []

    def all_gather_text(self, text: str) -> list[str]:
        shares = [_share(rank, self.ranks) for rank in range(self.ranks)]
        if not self._sizes:
            self._sizes = [
                ShareSize(f"machine {rank // RANKS_OF_A_MACHINE}", share.header_bytes, share.data_bytes)
                for rank, share in enumerate(shares)
            ]
            texts = [json.dumps(size) for size in self._sizes]
            self.calls.start()
            return texts
        (folder,) = self.root.glob(".tmp-*")
        places = plan_shares(self._sizes)
        reports = [text]
        for share, place in zip(shares[1:], places[1:], strict=True):
            reports.append(Report(share.write(folder, place), {}, "").to_json())
        self.calls.start()
        return reports

    def broadcast_text(self, text: str | None) -> str:
        self.calls.stop()
        return super().broadcast_text(text)


def _save(root: Path, ranks: int) -> int:
    """Calls that the plan, the files and the commit have taken rank 0."""
    many = _FirstOfMany(root, ranks)
    store = CheckpointStore(root, collectives=many, keep_last=1)

    def write_more(folder: Path) -> dict[str, Digest]:
        return {"spm.model": store_module.write_new_file(folder / "spm.model", b"pieces")}

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda target: None)
        patch.setattr(store_module, "machine_id", lambda: "machine 0")
        stages = store.stages(7, _share(0, ranks), run=run_record(ranks), write_more=write_more, required=True)
        assert save_at_once(stages) == root / "step-7"
    return many.calls.made


@pytest.fixture(scope="module", params=[1024, 4096])
def saved(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, int, int]:
    """The folder of a run, its ranks, and the calls that its save has taken rank 0."""
    root = tmp_path_factory.mktemp("many")
    return root, request.param, _save(root, request.param)


def test_a_checkpoint_of_many_ranks_is_a_file_for_each_machine_and_three_more(saved: tuple[Path, int, int]) -> None:
    root, ranks, calls = saved
    names = {path.name for path in (root / "step-7").iterdir()}
    machines = ranks // RANKS_OF_A_MACHINE
    assert names == {f"node-{number}.safetensors" for number in range(machines)} | {
        INDEX_NAME,
        MANIFEST_NAME,
        "spm.model",
    }
    assert len(names) <= 4 * machines
    assert 0 < calls < 150 * ranks
    assert len(json.loads((root / "step-7" / INDEX_NAME).read_bytes())) == ranks
    verify_checkpoint(root / "step-7")


class _OneOfMany:
    """The collectives of the last rank of many, all of which find what this one finds."""

    def __init__(self, ranks: int, plan: str) -> None:
        self.rank, self.world_size, self._plan = ranks - 1, ranks, plan

    def broadcast_text(self, text: str | None) -> str:
        return self._plan

    def all_gather_text(self, text: str) -> list[str]:
        return [text] * self.world_size


def _counted(monkeypatch: pytest.MonkeyPatch, opened: list[str]) -> None:
    def wrap(real: Callable[..., Any]) -> Callable[..., Any]:
        def call(path: Any, *more: Any, **options: Any) -> Any:
            if not isinstance(path, int):  # a descriptor has been counted
                opened.append(Path(path).name)
            return real(path, *more, **options)

        return call

    monkeypatch.setattr(os, "open", wrap(os.open))
    monkeypatch.setattr(io, "open", wrap(io.open))


def test_a_rank_of_many_resumes_with_five_opens_few_calls_and_100_mb(
    saved: tuple[Path, int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    root, ranks, _ = saved
    collectives = _OneOfMany(ranks, json.dumps([["step-7"], [], ""]))
    opened: list[str] = []
    _counted(monkeypatch, opened)
    with counted_calls() as calls:
        point = find_resumable(root, collectives=collectives, run=run_record(ranks))
        CheckpointContent(point.folder)
    assert {MANIFEST_NAME, INDEX_NAME} < set(opened) and len(opened) <= 5, "so all ranks together: linear in ranks"
    tracemalloc.start()
    find_resumable(root, collectives=collectives, run=run_record(ranks))
    CheckpointContent(point.folder)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 100 * 10**6
    assert 0 < calls.made < 150 * ranks


@pytest.mark.parametrize("verified_by", [1, 5, 12, 40])
def test_all_ranks_together_hash_every_byte_once(
    tmp_path: Path, verified_by: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a job of 12 ranks on two machines."""
    _save(tmp_path, 12)
    hashed: dict[str, list[tuple[int, int]]] = {}
    tensors = [0] * verified_by
    real = verify.hash_parts

    def note(path: Path, parts: list[tuple[int, int]]) -> Iterator[str]:
        hashed.setdefault(path.name, []).extend(parts)
        return real(path, parts)

    monkeypatch.setattr(verify, "hash_parts", note)
    for rank in range(verified_by):
        before = sum(len(parts) for name, parts in hashed.items() if name.startswith("node-"))
        verify_share(tmp_path / "step-7", rank=rank, world_size=verified_by)
        tensors[rank] = sum(len(parts) for name, parts in hashed.items() if name.startswith("node-")) - before
    for name, parts in hashed.items():
        ends = [0]
        for offset, size in sorted(parts):
            assert offset == ends[-1]
            ends.append(offset + size)
        assert ends[-1] == (tmp_path / "step-7" / name).stat().st_size
    assert hashed.keys() == {path.name for path in (tmp_path / "step-7").iterdir()} - {MANIFEST_NAME}
    assert max(tensors) - min(tensors) <= 1, "all have about as much to read"
