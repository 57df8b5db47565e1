"""The deepspeed block: keys that DeepSpeed would ignore, and batch sizes that do not multiply out."""

from typing import Any

import deepspeed.runtime.config as deepspeed_config
import pytest

from megadeberta.config.deepspeed_block import (
    KNOWN_KEYS,
    OURS,
    BatchAlgebra,
    batch_algebra,
    check_keys,
    is_enabled,
    offloads_optimizer,
    zero_stage,
)
from megadeberta.errors import ConfigError

SIZES = {"train_batch_size": 16, "train_micro_batch_size_per_gpu": 4}


class _Spy(dict):
    """A config that remembers which of its keys are asked for."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.asked: set[str] = set()

    def get(self, key: str, default: Any = None) -> Any:
        self.asked.add(key)
        return super().get(key, default)

    def __getitem__(self, key: str) -> Any:
        self.asked.add(key)
        return super().__getitem__(key)

    def __contains__(self, key: object) -> bool:
        self.asked.add(str(key))
        return super().__contains__(key)

    def keys(self) -> Any:
        return self  # for `key in config.keys()`

    def __copy__(self) -> "_Spy":
        return self


def test_known_keys_are_those_that_deepspeed_reads_and_does_not_refuse() -> None:
    spy = _Spy(train_batch_size=8)
    deepspeed_config.DeepSpeedConfig(spy)
    removed = set(deepspeed_config._REMOVED_TOP_LEVEL_CONFIG_KEYS)
    # Read by deepspeed.initialize itself, before there is a DeepSpeedConfig.
    of_initialize = {"data_parallel_size", "sequence_parallel_size"}
    assert spy.asked - removed - {"bfloat16"} | of_initialize == KNOWN_KEYS
    assert removed & KNOWN_KEYS == set()


@pytest.mark.parametrize(
    ("key", "hint"),
    [
        ("zero_optimisation", "did you mean 'zero_optimization'?"),
        ("train_batchsize", "did you mean 'train_batch_size'?"),
        ("bfloat16", "did you mean 'bf16'?"),
        ("gradient_clip", "did you mean 'gradient_clipping'?"),
        ("qqqqq", "DeepSpeed 0.19.8 has no such key"),
    ],
)
def test_unknown_key_names_the_nearest_one(key: str, hint: str) -> None:
    with pytest.raises(ConfigError) as raised:
        check_keys({**SIZES, key: 1}, source="r.json")
    assert str(raised.value) == f"r.json: unknown key deepspeed.{key}; {hint}"


@pytest.mark.parametrize("key", sorted(OURS))
def test_key_whose_job_the_recipe_has_is_refused_with_its_place(key: str) -> None:
    with pytest.raises(ConfigError, match=rf"r\.json: deepspeed\.{key} is not used here; its place is \w+|`"):
        check_keys({**SIZES, key: {}}, source="r.json")


@pytest.mark.parametrize(
    ("block", "message"),
    [
        ({"zero_optimization": True}, r"deepspeed\.zero_optimization must be an object, found True"),
        ({"bf16": "on"}, r"deepspeed\.bf16 must be an object, found 'on'"),
        ({"fp16": None}, r"deepspeed\.fp16 must be an object, found None"),
        ({"bf16": {"enabled": True}, "fp16": {"enabled": True}}, r"bf16 and deepspeed\.fp16 are both enabled"),
        ({"zero_optimization": {"stage": 4}}, r"stage=4 must be 0, 1, 2 or 3"),
        ({"zero_optimization": {"stage": "1"}}, r"stage='1' must be 0, 1, 2 or 3"),
        (
            {"zero_optimization": {"stage": 2, "offload_optimizer": "cpu"}},
            r"offload_optimizer must be an object.*'cpu'",
        ),
        ({"zero_optimization": {"stage": 3, "offload_param": None}}, r"offload_param must be an object, found None"),
        (
            {"zero_optimization": {"stage": 3, "offload_param": {"device": "disk"}}},
            r"offload_param\.device='disk' must be none, cpu or nvme",
        ),
        (
            {"zero_optimization": {"stage": 1, "offload_optimizer": {"device": "nvme", "nvme_path": "/scratch"}}},
            r"offload_optimizer\.device='nvme' needs zero_optimization\.stage=3, found 1",
        ),
        (
            {"zero_optimization": {"stage": 3, "offload_optimizer": {"device": "nvme"}}},
            r"offload_optimizer\.device='nvme' needs nvme_path, a folder on .*, found None",
        ),
    ],
)
def test_wrong_value_in_the_block_is_refused(block: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=r"r\.json: deepspeed.*" + message.removeprefix(r"deepspeed")):
        check_keys({**SIZES, **block}, source="r.json")


@pytest.mark.parametrize(
    ("ranks", "accumulation"),
    [(1, 4), (2, 2), (4, 1)],
)
def test_accumulation_follows_from_the_batch_sizes(ranks: int, accumulation: int) -> None:
    assert batch_algebra(SIZES, data_parallel=ranks, source="r.json") == BatchAlgebra(16, 4, accumulation, ranks)


@pytest.mark.parametrize(("ranks", "nearest"), [(3, 12), (5, 20), (8, 32), (100, 400)])
def test_sizes_that_do_not_multiply_out_name_the_nearest_that_do(ranks: int, nearest: int) -> None:
    with pytest.raises(ConfigError, match=rf"is not a multiple of .* = {4 * ranks}; .*train_batch_size={nearest}$"):
        batch_algebra(SIZES, data_parallel=ranks, source="r.json")
    batch_algebra(SIZES | {"train_batch_size": nearest}, data_parallel=ranks, source="r.json")


@pytest.mark.parametrize("value", [None, 0, -4, 4.0, "4", True, [4]])
@pytest.mark.parametrize("key", list(SIZES))
def test_batch_size_must_be_a_positive_integer(key: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=rf"r\.json: deepspeed\.{key} must be a positive integer, found "):
        batch_algebra(SIZES | {key: value}, data_parallel=1, source="r.json")


def test_stage_precision_and_offload_are_read() -> None:
    block = {"zero_optimization": {"stage": 2, "offload_optimizer": {"device": "cpu"}}, "bf16": {"enabled": True}}
    assert (zero_stage(block), is_enabled(block, "bf16"), is_enabled(block, "fp16")) == (2, True, False)
    assert offloads_optimizer(block)
    assert (zero_stage({}), is_enabled({}, "bf16"), offloads_optimizer({})) == (0, False, False)
    assert not offloads_optimizer({"zero_optimization": {"offload_optimizer": {"device": "none"}}})


def test_given_accumulation_must_agree_with_the_batch_sizes() -> None:
    agreeing = SIZES | {"gradient_accumulation_steps": 2}
    assert batch_algebra(agreeing, data_parallel=2, source="r.json").accumulation == 2
    with pytest.raises(
        ConfigError, match=r"gradient_accumulation_steps=2, but train_batch_size=16 .* = 4; leave it out"
    ):
        batch_algebra(agreeing, data_parallel=1, source="r.json")
