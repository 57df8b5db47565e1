"""Ranks that were started differently are named before anything is built."""

from typing import Any

import pytest

from megadeberta.engine.same_start import check_same_start
from megadeberta.errors import ParallelError
from tests.unit.checkpoint.rank_threads import on_ranks, run_record

CONFIG: dict[str, Any] = {
    "optimizer": {"lr": 5e-4},
    "training": {"seed": 1},
    "objective": {"mask_rate": 0.15},
    "model": {"hidden_dropout_prob": 0.1},
    "deepspeed": {"zero_optimization": {"stage": 1}},
    "data": {"train": "corpora/a/train"},
}


def _start(*others: dict[str, Any], **record: Any) -> list[Any]:
    """What each rank comes to: rank 0 with ``CONFIG``, rank 1 and later with it and ``others``."""

    def call(ranks: Any) -> None:
        changed = CONFIG | (others[ranks.rank - 1] if ranks.rank else {})
        update = {"config": changed, **(record if ranks.rank else {})}
        check_same_start(run_record().model_copy(update=update), ranks)

    return on_ranks(call, 1 + len(others))


def test_equal_ranks_go_on() -> None:
    assert _start({}, {}) == [None, None, None]


@pytest.mark.parametrize(
    ("section", "key", "value", "said"),
    [
        ("optimizer", "lr", 1e-3, "optimizer.lr is 0.001 and not 0.0005"),
        ("training", "seed", 2, "training.seed is 2 and not 1"),
        ("objective", "mask_rate", 0.3, "objective.mask_rate is 0.3 and not 0.15"),
        ("model", "hidden_dropout_prob", 0.0, "model.hidden_dropout_prob is 0.0 and not 0.1"),
        ("deepspeed", "zero_optimization", {"stage": 2}, "deepspeed.zero_optimization.stage is 2 and not 1"),
        ("data", "train", "corpora/b/train", 'data.train is "corpora/b/train" and not "corpora/a/train"'),
    ],
)
def test_a_rank_with_another_setting_is_named_on_every_rank(section: str, key: str, value: Any, said: str) -> None:
    for error in _start({}, {section: {**CONFIG[section], key: value}}):
        assert isinstance(error, ParallelError)
        assert str(error).startswith(f"rank 2 was started otherwise than rank 0: {said}; start every rank")


def test_other_data_under_the_same_name_and_other_versions_are_found_too() -> None:
    other = run_record(data="changed").fingerprint
    assert "content of data is" in str(_start({}, fingerprint=other)[0])
    assert "version of torch is" in str(_start({}, versions={"torch": "2.12.0"})[1])
    assert "(1 more ranks differ)" in str(_start({}, {}, versions={"torch": "2.12.0"})[0])
