"""Batches that grow and mask rates that fall as a run goes on: pure in the step, the same under every layout."""

from pathlib import Path

import numpy as np
import pytest

from megadeberta.config.batches import BatchSizes, BatchStage
from megadeberta.config.data import DataConfig
from megadeberta.config.deepspeed_block import BatchAlgebra
from megadeberta.config.objective import ObjectiveConfig
from megadeberta.data.loader import training_batches
from megadeberta.data.targets import TARGETS, load_targets
from megadeberta.errors import ConfigError
from megadeberta.layers.objectives import objective_of
from tests.models import run_config
from tests.unit.data.small_data import make_data

LENGTH, STEPS, BATCH = 64, 9, 12
STAGES = (BatchStage(steps=3, sequences=4), BatchStage(steps=2, sequences=8))
SIZES = BatchSizes(STAGES, BATCH)
FALLING = ObjectiveConfig.model_validate({"mask_rate": 0.4, "mask_rate_schedule": {"end": 0.1, "steps": 6}})

Rows = dict[tuple[int, int], bytes]
"""A sequence and its targets by step and place in the step."""


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> DataConfig:
    folder = tmp_path_factory.mktemp("data")
    return make_data(folder, train_tokens=120 * (LENGTH - 2), valid_tokens=200, sequence_length=LENGTH)


def _collect(data: DataConfig, objective: ObjectiveConfig, *, ranks: int, micro_batch: int, start: int = 0) -> Rows:
    algebra = BatchAlgebra(BATCH, micro_batch, BATCH // (ranks * micro_batch), ranks)
    rows: Rows = {}
    for rank in range(ranks):
        with training_batches(
            data.model_copy(update={"loader_workers": 0}),
            objective,
            seed=3,
            algebra=algebra,
            data_rank=rank,
            start_step=start,
            total_steps=STEPS,
            batch_stages=STAGES,
        ) as steps:
            for item in steps:
                for batch in item.micro_batches:
                    ids, numbers, labels, positions = (
                        batch[name].numpy()
                        for name in ("input_ids", "sample_numbers", "masked_labels", "masked_positions")
                    )
                    for row, number in enumerate(numbers):
                        filled = labels[row] != 0
                        place = int(number) & 0xFFFFFFFF
                        parts = (ids[row], labels[row][filled], positions[row][filled])
                        rows[item.step, place] = b"".join(part.tobytes() for part in parts)
    return rows


@pytest.mark.parametrize("objective", [FALLING, FALLING.model_copy(update={"name": "mlm_ar"})], ids=lambda o: o.name)
def test_every_layout_and_every_resume_has_the_same_sequences_and_masks(
    data: DataConfig, objective: ObjectiveConfig
) -> None:
    alone = _collect(data, objective, ranks=1, micro_batch=4)
    assert sorted(alone) == [(step, place) for step in range(STEPS) for place in range(SIZES.at(step))]
    assert _collect(data, objective, ranks=2, micro_batch=2) == alone
    assert _collect(data, objective, ranks=4, micro_batch=1) == alone
    for start in range(STEPS):
        rest = {key: row for key, row in alone.items() if key[0] >= start}
        assert _collect(data, objective, ranks=2, micro_batch=1, start=start) == rest


def test_no_sample_comes_twice_and_none_is_left_out_where_the_batch_grows(data: DataConfig) -> None:
    plain = ObjectiveConfig()
    grown = _collect(data, plain, ranks=1, micro_batch=4)
    in_order = [grown[key] for key in sorted(grown)]
    with training_batches(
        data.model_copy(update={"loader_workers": 0}),
        plain,
        seed=3,
        algebra=BatchAlgebra(SIZES.samples(STEPS), SIZES.samples(STEPS), 1, 1),
        data_rank=0,
        start_step=0,
        total_steps=1,
    ) as steps:
        (batch,) = next(steps).micro_batches
    assert [row[: LENGTH * 8] for row in in_order] == [row.tobytes() for row in batch["input_ids"].numpy()]


def test_the_rate_of_every_step_is_that_of_the_schedule_and_validation_keeps_the_first(data: DataConfig) -> None:
    schedule = FALLING.mask_rate_schedule
    assert schedule is not None
    assert [FALLING.mask_rate_at(step) for step in (0, 3, 6, 600)] == pytest.approx([0.4, 0.25, 0.1, 0.1])
    cosine = schedule.model_copy(update={"shape": "cosine"})
    assert [cosine.rate(0.4, step) for step in (0, 2, 3, 4, 6)] == pytest.approx([0.4, 0.325, 0.25, 0.175, 0.1])

    single = FALLING.model_copy(update={"whole_word": False})
    rows = _collect(data, single, ranks=1, micro_batch=4)
    for step in range(STEPS):
        counts = [(len(rows[key]) // 8 - LENGTH) / 2 for key in rows if key[0] == step]
        # A window of the rate's width holds its mean, to within one token.
        assert np.abs(np.array(counts) - FALLING.mask_rate_at(step) * (LENGTH - 2)).max() <= 1.0
    objective = objective_of(FALLING)
    assert objective.targets_per_sequence(FALLING, LENGTH) == pytest.approx(0.25 * (LENGTH - 2))
    assert objective.most_targets(FALLING, LENGTH) == 25
    assert "40% to 10% (linear over 6 steps) of the tokens masked" in objective.describe(FALLING)


def test_a_schedule_of_what_masks_nothing_or_knows_one_rate_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = run_config(objective=FALLING.model_copy(update={"name": "ar"}))
    with pytest.raises(ConfigError, match=r"objective\.name='ar' masks nothing"):
        objective_of(config.objective).check(config)
    monkeypatch.setitem(TARGETS, "masked", lambda *given, **more: object())
    with pytest.raises(ConfigError, match="have no method at_rate"):
        load_targets(FALLING, np.zeros(4, np.uint8), mask_id=3)
