"""An average of the weights does not depend on the layout, and resumes under another one."""

from pathlib import Path

import numpy as np

from megadeberta.checkpoint.content import AVERAGE, WEIGHT, CheckpointContent
from tests.distributed.layouts import Layout, build, train_steps
from tests.distributed.resuming import SAVED_AFTER, load, save
from tests.ranks import run_ranks

TENSOR_AND_DATA = Layout("v3", tensor=2, data=2, zero=1, micro_batch=2, ema_decay=0.5)
PIPELINE = Layout("v3", pipeline=2, zero=1, micro_batch=1, ema_decay=0.5)
ALONE = Layout("v3", ema_decay=0.5)


def _train(rank: int, world_size: int, layout: Layout, source: Path | None, root: Path) -> list[Path]:
    """Three steps, or what was saved after them; its checkpoint, and one of three steps later."""
    assembly = build(layout)
    if source is None:
        train_steps(assembly, layout, range(SAVED_AFTER))
    else:
        load(assembly, source)
    first = save(assembly, root / "first")
    train_steps(assembly, layout, range(SAVED_AFTER, 2 * SAVED_AFTER))
    return [first, save(assembly, root / "second")]


def _run(layout: Layout, source: Path | None, root: Path) -> list[dict[str, np.ndarray]]:
    folders = run_ranks(_train, layout.topology.world_size, layout, source, root)[0]
    return [dict(CheckpointContent(folder).whole(AVERAGE)) for folder in folders]


def test_an_average_is_that_of_one_process_and_resumes_in_a_pipeline(tmp_path: Path) -> None:
    alone, divided = _run(ALONE, None, tmp_path / "a"), _run(TENSOR_AND_DATA, None, tmp_path / "t")
    resumed = _run(PIPELINE, tmp_path / "t" / "first", tmp_path / "p")
    assert [name for name in divided[0] if not np.array_equal(divided[0][name], resumed[0][name])] == []
    for found in (divided[1], resumed[1]):
        for name, expected in alone[1].items():
            np.testing.assert_allclose(found[name], expected, atol=1e-5, err_msg=name)
    weights = dict(CheckpointContent(next((tmp_path / "a" / "second").rglob("step-*"))).whole(WEIGHT))
    assert max(np.abs(weights[name] - alone[1][name]).max() for name in weights) > 1e-4


def _begin_late(rank: int, world_size: int, root: Path) -> bool:
    without = build(Layout("v3"))
    train_steps(without, ALONE, range(SAVED_AFTER))
    folder = save(without, root / "without")
    late = build(ALONE)
    load(late, root / "without")
    content = CheckpointContent(save(late, root / "with"))
    weights = dict(CheckpointContent(folder).whole(WEIGHT))
    return all(np.array_equal(values, weights[name]) for name, values in content.whole(AVERAGE))


def test_a_run_that_begins_to_keep_an_average_begins_with_its_weights(tmp_path: Path) -> None:
    assert run_ranks(_begin_late, 1, tmp_path) == [True]
