"""How batches are divided, and what DeepSpeed is told."""

import deepspeed
import pytest

from megadeberta.errors import ConfigError
from megadeberta.finetune.loop import _deepspeed, divide_batch
from megadeberta.finetune.settings import Settings


def test_zero_starts_without_the_all_reduce_that_deepspeed_compiles(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(deepspeed.ops.__compatible_ops__, "deepspeed_shm_comm", True)
    found = _deepspeed(Settings(epochs=1, length=8, seeds=(1,), zero=2))
    assert found["zero_optimization"] == {"stage": 2}
    assert deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] is False


def test_a_batch_is_divided_over_ranks_and_then_added_up() -> None:
    assert divide_batch(32, None, 4) == (8, 1)
    assert divide_batch(32, 2, 4) == (2, 4)
    assert divide_batch(8, 16, 2) == (4, 1)
    with pytest.raises(ConfigError, match="--batch-size 30 is no multiple of 4 ranks x 7 sequences"):
        divide_batch(30, None, 4)
