"""Samples that a run passes over leave no hole: the step has those behind them, under its own number."""

from pathlib import Path

import torch

from megadeberta.config.deepspeed_block import BatchAlgebra
from megadeberta.config.objective import ObjectiveConfig
from megadeberta.config.spikes import PassedOver
from megadeberta.data.loader import training_batches
from tests.unit.data.small_data import make_data

BATCH = 8


def test_a_step_behind_a_window_that_is_passed_over_gets_the_samples_behind_it(tmp_path: Path) -> None:
    data = make_data(tmp_path, train_tokens=2000, valid_tokens=100, sequence_length=32)
    window = PassedOver(first_sample=BATCH, stop_sample=3 * BATCH, step=3, loss=9.0, median=1.0)
    algebra = BatchAlgebra(BATCH, micro_batch=2, accumulation=2, data_parallel=2)
    options = {"seed": 3, "algebra": algebra, "data_rank": 1, "total_steps": 9}
    with (
        training_batches(data, ObjectiveConfig(), start_step=0, passed_over=[window], **options) as shifted,
        training_batches(data, ObjectiveConfig(), start_step=3, **options) as plain,
    ):
        first, second, third = (next(shifted) for _ in range(3))
        for step, item in ((1, second), (2, third)):
            for batch, same in zip(item.micro_batches, next(plain).micro_batches, strict=True):
                assert torch.equal(batch["input_ids"], same["input_ids"])
                assert item.step == step and (batch["sample_numbers"] >> 32 == step).all()
        assert not torch.equal(first.micro_batches[0]["input_ids"], second.micro_batches[0]["input_ids"])
