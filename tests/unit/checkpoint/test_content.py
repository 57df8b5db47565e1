"""Tensors written under one layout and read under another; and files that are not what their index says."""

import json
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy

from megadeberta.checkpoint import content
from megadeberta.checkpoint.content import WEIGHT, CheckpointContent, Entry, RankContent, write_tensors
from megadeberta.checkpoint.fragments import Fragment, TensorSlice
from megadeberta.errors import CheckpointError
from tests.counting import counted_calls
from tests.unit.checkpoint.cuts import cut, values_of

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


def _write(folder: Path, layout: list[list[Fragment]], updates: float | None = 3.0) -> Path:
    for rank, fragments in enumerate(layout):
        counted = tuple(f.model_copy(update={"updates": updates}) for f in fragments)
        index = RankContent(fragments=counted, counters={"global_steps": 3}, scaler={})
        (folder / f"rank-{rank}.json").write_text(index.model_dump_json())
        entries = [
            Entry(state, fragment, lambda s=state, f=fragment: values_of(f, VALUES[s, f.name]))
            for fragment in fragments
            for state in STATES
        ]
        write_tensors(folder / f"rank-{rank}.safetensors", entries)
    return folder


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


def test_the_files_are_plain_safetensors(tmp_path: Path) -> None:
    (fragments,) = _layout(1, 1, 1)
    _write(tmp_path, [fragments])
    tensors = safetensors.numpy.load_file(tmp_path / "rank-0.safetensors")
    assert tensors.keys() == {f"{state}/{name}" for state in STATES for name in SHAPES}
    assert (tensors["exp_avg/down"] == VALUES["exp_avg", "down"].reshape(-1)).all()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return _write(tmp_path, _layout(2, 1, 2))


def test_a_missing_rank_is_found_by_its_elements(folder: Path) -> None:
    (folder / "rank-3.json").unlink()
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
    index = json.loads((folder / "rank-3.json").read_bytes())
    index["fragments"][1]["updates"] = 4
    (folder / "rank-3.json").write_text(json.dumps(index))
    name = index["fragments"][1]["name"]
    with pytest.raises(CheckpointError, match=rf"{name} has fragments of different updates; the checkpoint is damaged"):
        CheckpointContent(folder).updates(name)


def test_files_that_are_no_tensors_or_other_ones_are_refused(folder: Path) -> None:
    wanted = Fragment(name="up", shape=(10, 6), slice=TensorSlice(0, 0, 10), start=0, stop=60)
    out = np.empty(60, dtype=np.float32)
    whole = (folder / "rank-0.safetensors").read_bytes()
    for damaged in (b"", b"\x80\x04.", whole[:-1]):
        (folder / "rank-0.safetensors").write_bytes(damaged)
        with pytest.raises(CheckpointError, match=r"rank-0\.safetensors: cannot be read as tensors .*; the checkpoint"):
            CheckpointContent(folder).read(WEIGHT, wanted, out)
    (folder / "rank-0.safetensors").unlink()
    safetensors.numpy.save_file({"weight/up": np.zeros(3, dtype=np.float64)}, folder / "rank-0.safetensors")
    with pytest.raises(CheckpointError, match=r"rank-0\.safetensors: weight/up is F64 \[3\], its index says F32 \[\d+"):
        CheckpointContent(folder).read(WEIGHT, wanted, out)


@pytest.mark.parametrize(
    "index", [b"\x80\x04.", b"[]", b'{"fragments": [{"name": "a", "shape": [2], "start": 0, "stop": 3}]}']
)
def test_an_index_that_is_none_is_refused(folder: Path, index: bytes) -> None:
    (folder / "rank-0.json").write_bytes(index)
    with pytest.raises(CheckpointError, match=r"rank-0\.json: is no index of tensors .*the checkpoint is damaged"):
        CheckpointContent(folder)
    (folder / "rank-0.json").unlink()
    with pytest.raises(CheckpointError, match=r"rank-0\.json: is no index of tensors \(No such file"):
        CheckpointContent(folder)


@pytest.mark.parametrize("ranks", [1024, 4096])
def test_a_rank_of_many_opens_one_index_with_few_calls_and_100_mb(
    tmp_path: Path, ranks: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As ZeRO 1 cuts 1.5B parameters: about one fragment per rank."""
    each = 1_567_828_068 // ranks
    for rank in range(ranks):
        piece = Fragment(
            name=f"layer.{rank % 784}.weight", shape=(ranks * each,), start=rank * each, stop=(rank + 1) * each
        )
        index = RankContent(fragments=(piece,), counters={"global_steps": 3}, scaler={})
        (tmp_path / f"rank-{rank}.json").write_text(index.model_dump_json())
    parts = [(tmp_path / f"rank-{rank}.json").read_text() for rank in range(ranks)]
    (tmp_path / "index.json").write_text("[" + ",".join(parts) + "]")
    opened: list[str] = []
    read = Path.read_bytes
    monkeypatch.setattr(Path, "read_bytes", lambda path: (opened.append(path.name), read(path))[1])
    tracemalloc.start()
    with counted_calls() as calls:
        merged = CheckpointContent(tmp_path)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert opened == ["index.json"]
    assert 0 < calls.made < 300 * ranks
    assert peak < 100 * 10**6
    (tmp_path / "index.json").unlink()
    opened.clear()
    older = CheckpointContent(tmp_path)
    assert len(opened) == ranks
    assert older.names == merged.names
    assert older.counters == merged.counters


def test_an_index_of_all_ranks_that_is_none_is_refused(tmp_path: Path) -> None:
    folder = _write(tmp_path, _layout(1, 1, 2))
    for text in ("[]", "{}", "[{}]", ""):
        (folder / "index.json").write_text(text)
        with pytest.raises(CheckpointError, match=r"index\.json: is no index of tensors .*the checkpoint is damaged"):
            CheckpointContent(folder)
