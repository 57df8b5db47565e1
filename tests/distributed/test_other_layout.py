"""Saved under some ranks, ZeRO stage and precision, resumed under others: same state, same losses, with dropout."""

import itertools
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from megadeberta.assembly import Assembly
from megadeberta.checkpoint.content import WEIGHT, CheckpointContent
from megadeberta.model.dropout import set_sites
from tests.distributed.full_weights import gather_weights
from tests.distributed.layouts import SEED, Layout, build, train_steps
from tests.distributed.resuming import SAVED_AFTER, Outcome, assert_same_content, go_on, load, save
from tests.ranks import run_ranks

Pair = tuple[Layout, Layout]


def _layout(ranks: int, stage: int, precision: str = "fp32") -> Layout:
    more = () if precision == "fp32" else ((precision, {"enabled": True}),)
    return Layout("v3", data=ranks, zero=stage, micro_batch=2, batch=8, more=more)


def _save_and_go_on(assembly: Assembly, layout: Layout, root: Path, more: int) -> Outcome:
    engine = assembly.stepper.engine
    gathered = gather_weights(engine)
    folder = save(assembly, root)
    if engine.zero_optimization_stage() or next(engine.module.parameters()).dtype.itemsize == 4:
        saved = dict(CheckpointContent(folder).whole(WEIGHT))
        for name, weight in gathered.items():  # DeepSpeed's own gathers; under ZeRO-0 they would be the bf16 weights
            assert np.array_equal(saved[name], weight.numpy()), name
    return Outcome(folder, go_on(assembly, layout, more))


def _save_all(rank: int, world_size: int, root: Path, layouts: list[Layout], more: int) -> list[Outcome]:
    outcomes = []
    for layout in layouts:
        assembly = build(layout)
        train_steps(assembly, layout, range(SAVED_AFTER))
        outcomes.append(_save_and_go_on(assembly, layout, root / str(layout), more))
    return outcomes


def _resume_all(rank: int, world_size: int, root: Path, pairs: list[Pair], more: int) -> list[Outcome]:
    outcomes = []
    for source, target in pairs:
        assembly = build(replace(target, seed=77))
        # Other initial values, the same dropout.
        set_sites(assembly.stepper.engine.module.named_modules(), seed=SEED)
        load(assembly, root / str(source))
        outcomes.append(_save_and_go_on(assembly, target, root / f"{source} -> {target}", more))
    return outcomes


def _run_pairs(root: Path, pairs: list[Pair], *, more: int = 2) -> Iterator[tuple[str, Outcome, Outcome]]:
    """(pair, what the first layout saved and did then, what the second had after loading and did then)."""
    options = {"timeout": 600}  # many engines, one after the other
    saved: dict[str, Outcome] = {}
    for ranks in (1, 2):
        sources = {str(source): source for source, _ in pairs if source.data == ranks}
        done = run_ranks(_save_all, ranks, root, list(sources.values()), more, **options)[0] if sources else []
        saved |= dict(zip(sources, done, strict=True))
    for ranks in (1, 2):
        mine = [pair for pair in pairs if pair[1].data == ranks]
        done = run_ranks(_resume_all, ranks, root, mine, more, **options)[0] if mine else []
        for (source, target), after in zip(mine, done, strict=True):
            yield f"{source} -> {target}", saved[str(source)], after


def _check_fp32(root: Path, pairs: list[Pair], **options: Any) -> None:
    seen = 0
    for case, before, after in _run_pairs(root, pairs, **options):
        assert_same_content(before.folder, after.folder)
        content = CheckpointContent(after.folder)
        assert {content.updates(name) for name in content.names} == {float(SAVED_AFTER)}, case
        # Sums over ranks and micro batches are taken in another order: some rounding of float32.
        found, expected = ([loss for loss, _ in outcome.steps] for outcome in (after, before))
        assert found[0] == pytest.approx(expected[0], rel=1e-6), case
        assert found == pytest.approx(expected, rel=1e-5), case
        seen += 1
    assert seen == len(pairs)


ONE = [_layout(1, stage) for stage in range(4)]
TWO = [_layout(2, stage) for stage in range(4)]
COVERING = [
    (ONE[0], TWO[3]),
    (ONE[3], TWO[2]),
    (TWO[0], TWO[1]),
    (TWO[1], ONE[0]),
    (TWO[2], TWO[0]),
    (TWO[3], ONE[2]),
]


def test_every_stage_saves_for_another_and_resumes_another(tmp_path: Path) -> None:
    _check_fp32(tmp_path, COVERING)


# With two updates a step ZeRO-3 is refused.
RTD_PAIRS = [(ONE[0], TWO[2]), (TWO[1], ONE[3]), (TWO[3], ONE[0])]
DECOUPLED_PAIRS = [(ONE[0], TWO[2]), (TWO[1], ONE[0])]


def _of(variant: str, pairs: list[Pair]) -> list[Pair]:
    return [(replace(source, variant=variant), replace(target, variant=variant)) for source, target in pairs]


@pytest.mark.campaign
@pytest.mark.parametrize(
    ("variant", "pairs"),
    [("rtd-gdes", RTD_PAIRS), ("rtd-gdes-decoupled", DECOUPLED_PAIRS)],
    ids=["together", "decoupled"],
)
def test_replaced_token_detection_resumes_under_other_layouts(tmp_path: Path, variant: str, pairs: list[Pair]) -> None:
    _check_fp32(tmp_path, _of(variant, pairs))


@pytest.mark.campaign
@pytest.mark.parametrize("variant", ["v3", "rtd-gdes"], ids=["mlm", "rtd"])
def test_every_pair_of_layouts_resumes_each_other_for_twenty_steps(tmp_path: Path, variant: str) -> None:
    _check_fp32(tmp_path, _of(variant, list(itertools.permutations([*ONE, *TWO], 2))), more=20)


def test_sixteen_bit_runs_keep_their_fp32_state_under_other_layouts_and_precisions(tmp_path: Path) -> None:
    pairs = [
        (_layout(2, 1, "bf16"), _layout(1, 0, "bf16")),
        (_layout(1, 0, "bf16"), _layout(2, 3, "bf16")),
        (_layout(2, 3, "bf16"), _layout(2, 2)),
        (_layout(2, 2), _layout(2, 1, "bf16")),
    ]
    for case, before, after in _run_pairs(tmp_path, pairs):
        assert_same_content(before.folder, after.folder)
        # bf16 has eight bits: a loss under it is within a percent of the loss in fp32.
        found, expected = ([loss for loss, _ in outcome.steps] for outcome in (after, before))
        assert found == pytest.approx(expected, rel=2e-2), case
