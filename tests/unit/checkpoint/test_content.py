"""Tensors written under one layout and read under another; and files that are not what their index says."""

import json
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy

from megadeberta.checkpoint import CheckpointStore, content
from megadeberta.checkpoint import store as store_module
from megadeberta.checkpoint.content import WEIGHT, CheckpointContent
from megadeberta.checkpoint.fragments import Fragment, TensorSlice
from megadeberta.checkpoint.rank_share import Entry, RankContent, RankShare
from megadeberta.checkpoint.stages import save_at_once
from megadeberta.errors import CheckpointError
from tests.unit.checkpoint.cuts import cut, values_of
from tests.unit.checkpoint.rank_threads import ThreadCollectives, on_ranks, run_record

SHAPES = {"word": (21, 6), "up": (10, 6), "down": (6, 10), "bias": (10,), "norm": (6,), "kernel": (6, 6, 3)}
DIMS = {"word": 0, "up": 0, "down": 1, "bias": 0, "norm": None, "kernel": None}
STATES = (WEIGHT, "exp_avg", "exp_avg_sq")
VALUES = {
    (state, name): np.random.default_rng(index).standard_normal(shape).astype(np.float32)
    for index, (state, (name, shape)) in enumerate((s, item) for s in STATES for item in SHAPES.items())
}
LAYOUTS = [(1, 1, 1), (1, 1, 3), (2, 1, 1), (4, 1, 2), (2, 2, 2), (1, 3, 1)]
"""(tensor, pipeline, data); the vocabulary is cut in units of 8 rows, so the last shard is short."""


def _layout(tensor: int, pipeline: int, data: int) -> list[list[Fragment]]:
    """Fragments per rank: parameters are dealt over the stages, and cut over tensor and data ranks."""
    ranks: list[list[Fragment]] = [[] for _ in range(tensor * pipeline * data)]
    for index, (name, shape) in enumerate(SHAPES.items()):
        dim, stage = DIMS[name], index % pipeline
        unit = 8 if name == "word" else 1
        length = 0 if dim is None else -(-shape[dim] // unit)
        bounds = tuple(sorted({unit * (length * t // tensor) for t in range(1, tensor)} - {0}))
        held = cut(name, shape, dim=dim if tensor > 1 else None, bounds=bounds, data_parallel=data, shift=index)
        for number, fragments in enumerate(held):
            ranks[stage * tensor * data + number] += fragments
    return ranks


def _rank() -> int:
    return int(threading.current_thread().name.removeprefix("rank-"))


def _write(
    folder: Path, layout: list[list[Fragment]], updates: float | None = 3.0, ranks_of_a_machine: int = 3
) -> Path:
    """As many ranks write it at once, on so many machines."""

    def body(collectives: ThreadCollectives) -> Path | None:
        rank = collectives.rank
        counted = tuple(fragment.model_copy(update={"updates": updates}) for fragment in layout[rank])
        entries = [
            Entry(state, fragment, lambda s=state, f=fragment: values_of(f, VALUES[s, f.name]))
            for fragment in layout[rank]
            for state in STATES
        ]
        share = RankShare(rank, RankContent(fragments=counted, counters={"global_steps": 3}, scaler={}), entries)
        store = CheckpointStore(folder, collectives=collectives, keep_last=1)
        return save_at_once(store.stages(3, share, run=run_record(len(layout)), required=True))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(store_module, "machine_id", lambda: f"machine {_rank() // ranks_of_a_machine}")
        (written,) = set(on_ranks(body, len(layout)))
    return written


@pytest.fixture(params=[1 << 22, 7], ids=["", "in small blocks"])
def _block(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(content, "_BLOCK", request.param)


@pytest.mark.parametrize("saved", LAYOUTS)
@pytest.mark.usefixtures("_block")
def test_what_one_layout_wrote_every_other_one_reads_bit_for_bit(tmp_path: Path, saved: tuple[int, int, int]) -> None:
    checkpoint = CheckpointContent(_write(tmp_path, _layout(*saved)))
    for wanted in LAYOUTS:
        for fragment in (fragment for fragments in _layout(*wanted) for fragment in fragments):
            for state in STATES:
                out = np.full(fragment.size, np.nan, dtype=np.float32)
                checkpoint.read(state, fragment, out)
                assert out.tobytes() == values_of(fragment, VALUES[state, fragment.name]).tobytes()
    assert {name: values.tobytes() for name, values in checkpoint.whole()} == {
        name: VALUES[WEIGHT, name].tobytes() for name in SHAPES
    }
    assert [checkpoint.updates(name) for name in SHAPES] == [3.0] * len(SHAPES)
    assert checkpoint.counters == {"global_steps": 3}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("ranks_of_a_machine", [1, 2, 8])
def test_a_file_of_a_machine_is_a_plain_one_of_safetensors(
    tmp_path: Path, layout: tuple[int, int, int], ranks_of_a_machine: int
) -> None:
    ranks = _layout(*layout)
    folder = _write(tmp_path, ranks, ranks_of_a_machine=ranks_of_a_machine)
    machines = -(-len(ranks) // ranks_of_a_machine)
    names = {f"node-{number}.safetensors" for number in range(machines)}
    assert {path.name for path in folder.iterdir()} == names | {"index.json", "manifest.json"}
    for number, name in enumerate(sorted(names)):
        tensors = safetensors.numpy.load_file(folder / name)
        for rank in range(len(ranks))[number * ranks_of_a_machine : (number + 1) * ranks_of_a_machine]:
            record = RankContent.model_validate_json(tensors.pop(f"rank-{rank}/record").tobytes())
            assert [fragment.name for fragment in record.fragments] == [fragment.name for fragment in ranks[rank]]
            for fragment in ranks[rank]:
                for state in STATES:
                    found = tensors.pop(f"rank-{rank}/{state}/{fragment.name}")
                    assert found.tobytes() == values_of(fragment, VALUES[state, fragment.name]).tobytes()
        assert not tensors


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return _write(tmp_path, _layout(2, 1, 2))


def _edit_index(folder: Path, edit: Callable[[list[dict[str, Any]]], object]) -> None:
    index = json.loads((folder / "index.json").read_bytes())
    edit(index)
    (folder / "index.json").write_text(json.dumps(index))


def test_a_missing_rank_is_found_by_its_elements(folder: Path) -> None:
    _edit_index(folder, lambda index: index.pop())
    checkpoint = CheckpointContent(folder)
    wanted = Fragment(name="up", shape=(10, 6), start=0, stop=60)
    with pytest.raises(CheckpointError, match=r"holds \d+ of 60 elements of weight/up; the checkpoint is damaged"):
        checkpoint.read(WEIGHT, wanted, np.empty(60, dtype=np.float32))
    with pytest.raises(CheckpointError, match=r"\w+ \[.*\] is not whole; the checkpoint is damaged; use an older one"):
        list(checkpoint.whole())


def test_other_names_shapes_and_counts_are_refused(folder: Path) -> None:
    checkpoint = CheckpointContent(folder)
    with pytest.raises(CheckpointError, match=r"holds no parameter sideways; resume with the model that wrote it"):
        checkpoint.updates("sideways")
    other = Fragment(name="up", shape=(6, 10), start=0, stop=60)
    with pytest.raises(CheckpointError, match=r"up has shape \[10, 6\] there, \[6, 10\] here; resume with the model"):
        checkpoint.read(WEIGHT, other, np.empty(60, dtype=np.float32))
    changed = checkpoint.names[-1]

    def count_another(index: list[dict[str, Any]]) -> None:
        held = [f for entry in index for f in entry["content"]["fragments"] if f["name"] == changed]
        assert len(held) > 1
        held[-1]["updates"] = 4

    _edit_index(folder, count_another)
    with pytest.raises(CheckpointError, match=rf"{changed} has fragments of different updates; the checkpoint is dama"):
        CheckpointContent(folder).updates(changed)


def test_files_that_are_no_tensors_or_other_ones_are_refused(folder: Path) -> None:
    wanted = Fragment(name="up", shape=(10, 6), slice=TensorSlice(0, 0, 10), start=0, stop=60)
    out = np.empty(60, dtype=np.float32)
    path = folder / "node-0.safetensors"
    whole = path.read_bytes()
    for damaged in (b"", b"\x80\x04.", whole[:-1]):
        path.write_bytes(damaged)
        with pytest.raises(CheckpointError, match=r"node-0\.safetensors: cannot be read as tensors .*; the checkpoint"):
            CheckpointContent(folder).read(WEIGHT, wanted, out)
    path.unlink()
    safetensors.numpy.save_file({"rank-0/weight/up": np.zeros(3, dtype=np.float64)}, path)
    message = r"node-0\.safetensors: rank-0/weight/up is F64 \[3\], its index says F32 \[\d+"
    with pytest.raises(CheckpointError, match=message):
        CheckpointContent(folder).read(WEIGHT, wanted, out)


CONTENT = '{"fragments": [], "counters": {}, "scaler": {}}'
OUTSIDE = CONTENT.replace("[]", '[{"name": "a", "shape": [2], "start": 0, "stop": 3}]')


@pytest.mark.parametrize(
    "index",
    [
        b"\x80\x04.",
        b"",
        b"[]",
        b"{}",
        b"[{}]",
        f'[{{"file": "node-0.safetensors", "content": {OUTSIDE}}}]'.encode(),
        f'[{{"file": "../node-0.safetensors", "content": {CONTENT}}}]'.encode(),
        f'[{{"file": "/etc/passwd", "content": {CONTENT}}}]'.encode(),
        f'[{{"file": "node-0.safetensors\\n", "content": {CONTENT}}}]'.encode(),
    ],
)
def test_an_index_that_is_none_is_refused(folder: Path, index: bytes) -> None:
    (folder / "index.json").write_bytes(index)
    with pytest.raises(CheckpointError, match=r"index\.json: is no index of tensors .*the checkpoint is damaged"):
        CheckpointContent(folder)
    (folder / "index.json").unlink()
    with pytest.raises(CheckpointError, match=r"index\.json: is no index of tensors \(No such file"):
        CheckpointContent(folder)
