"""The deepspeed block: keys that DeepSpeed would ignore, and batch sizes that do not multiply out."""

import math
from typing import Any

import deepspeed.runtime.config as deepspeed_config
import pytest
from deepspeed.runtime.zero.config import DeepSpeedZeroConfig

from megadeberta.config.deepspeed_block import (
    KNOWN_KEYS,
    OURS,
    BatchAlgebra,
    EngineSettings,
    batch_algebra,
    check_keys,
    with_values,
)
from megadeberta.config.run import RunConfig
from megadeberta.errors import ConfigError
from tests.models import recipe

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
        ({"data_types": "fp32"}, r"deepspeed\.data_types must be an object, found 'fp32'"),
        ({"communication_data_type": "float8"}, r"communication_data_type='float8' must be one of fp32, bf16, fp16"),
        ({"data_types": {"grad_accum_dtype": 32}}, r"data_types\.grad_accum_dtype=32 must be one of fp32, bf16, fp16"),
        (
            {"data_types": {"grad_accum_dtype": "bf16"}},
            r"grad_accum_dtype='bf16' with fp32 weights would lose digits; use 'fp32'$",
        ),
        (
            {"fp16": {"enabled": True}, "data_types": {"grad_accum_dtype": "bf16"}},
            r"grad_accum_dtype='bf16' with fp16 weights would lose digits; use 'fp32' or 'fp16'$",
        ),
        (
            {"bf16": {"enabled": True}, "data_types": {"grad_accum_dtype": "fp32"}},
            r"grad_accum_dtype='fp32' with bf16 needs .*stage=1 or more: DeepSpeed .* no fp32 accumulation without",
        ),
        ({"zero_optimization": {"overlap_comm": True}}, r"overlap_comm needs stage 1, 2 or 3: DeepSpeed .* ignores it"),
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


@pytest.mark.parametrize(("key", "element_bytes"), [("fp32", 4), ("bf16", 2), ("fp16", 2)])
def test_precision_is_that_of_the_enabled_section(key: str, element_bytes: int) -> None:
    block = {"bf16": {"enabled": False}, "fp16": {}} | {key: {"enabled": True}}
    settings = EngineSettings.of(block if key != "fp32" else {})
    assert (settings.precision, settings.element_bytes, settings.is_half) == (key, element_bytes, key != "fp32")


def test_settings_of_a_block_are_its_values() -> None:
    zero = {
        "stage": 2,
        "offload_optimizer": {"device": "cpu"},
        "reduce_bucket_size": 1e6,  # as JSON reads 1e6
        "stage3_max_reuse_distance": 7,
        "stage3_prefetch_bucket_size": 5,
        "contiguous_gradients": False,
        "overlap_comm": True,
    }
    settings = EngineSettings.of(
        SIZES
        | {"zero_optimization": zero, "gradient_accumulation_steps": 4, "zero_allow_untested_optimizer": True}
        | {"bf16": {"enabled": True}, "data_types": {"grad_accum_dtype": "fp32"}}
        | {"pipeline": {"pipe_partitioned": False}}
    )
    assert (settings.global_batch, settings.micro_batch, settings.accumulation) == (16, 4, 4)
    assert (settings.zero_stage, settings.optimizer_device, settings.offloads_optimizer) == (2, "cpu", True)
    assert (settings.reduce_bucket_size, settings.max_reuse_distance, settings.prefetch_bucket_size) == (10**6, 7, 5)
    assert (settings.contiguous_gradients, settings.overlaps_communication) == (False, True)
    assert (settings.partitions_activations, settings.partitions_gradients) == (False, True)
    assert (settings.accumulation_type, settings.reduction_type) == ("fp32", "bf16")
    assert settings.keeps_wide_gradients
    assert settings.allows_untested_optimizer


def test_settings_that_a_block_leaves_out_are_deepspeeds_defaults() -> None:
    settings, zero = EngineSettings.of({}), DeepSpeedZeroConfig()
    assert settings.zero_stage == zero.stage == 0
    assert settings.reduce_bucket_size == zero.reduce_bucket_size
    assert settings.max_reuse_distance == zero.max_reuse_distance
    assert settings.prefetch_bucket_size == zero.prefetch_bucket_size
    assert settings.contiguous_gradients is zero.contiguous_gradients is True
    for stage in (1, 2, 3):  # on by itself under stage 3 alone
        given = {"stage": stage, "overlap_comm": None}
        found = EngineSettings.of({"zero_optimization": given}).overlaps_communication
        assert found is DeepSpeedZeroConfig(**given).overlap_comm
    assert (settings.global_batch, settings.micro_batch, settings.accumulation) == (0, 0, None)
    assert (settings.partitions_activations, settings.partitions_gradients) == (True, True)
    assert not settings.offloads_optimizer
    assert (settings.accumulation_type, settings.reduction_type) == ("fp32", "fp32")
    assert not settings.keeps_wide_gradients


@pytest.mark.parametrize(
    "block",
    [
        {"zero_optimization": True, "bf16": "on", "fp16": None, "pipeline": [], "data_types": 3},
        {"zero_optimization": {"stage": "1", "offload_optimizer": "cpu", "reduce_bucket_size": "auto"}},
        {"zero_optimization": {"stage": 4, "offload_param": {"device": "disk"}, "reduce_bucket_size": math.inf}},
        {"train_batch_size": "16", "train_micro_batch_size_per_gpu": -4, "gradient_accumulation_steps": True},
    ],
)
def test_values_that_are_refused_elsewhere_read_as_not_given(block: dict[str, Any]) -> None:
    assert EngineSettings.of(block) == EngineSettings.of({})


@pytest.mark.parametrize(
    ("zero", "setting"),
    [
        ({"stage": 2, "offload_optimizer": {"device": "cpu"}}, "offload_optimizer.device='cpu'"),
        ({"stage": 3, "offload_param": {"device": "nvme"}}, "offload_param.device='nvme'"),
        ({"stage": 3, "offload_param": {"device": "cpu"}}, None),
        ({"stage": 2, "offload_optimizer": {"device": "none"}}, None),
        ({"stage": 2, "offload_optimizer": None}, None),
        ({"stage": 1}, None),
    ],
)
def test_only_some_offloading_needs_a_compiler(zero: dict, setting: str | None) -> None:
    found = EngineSettings.of({"zero_optimization": zero}).needs_compiler
    assert found is None if setting is None else found == f"deepspeed.zero_optimization.{setting}"


def test_values_are_set_by_dotted_key_and_the_rest_stays() -> None:
    block = {"zero_optimization": {"stage": 1, "overlap_comm": True}, "bf16": {"enabled": True}}
    changed = with_values(block, {"zero_optimization.stage": 3, "pipeline.pipe_partitioned": False})
    assert changed == {
        "zero_optimization": {"stage": 3, "overlap_comm": True},
        "bf16": {"enabled": True},
        "pipeline": {"pipe_partitioned": False},
    }
    assert block["zero_optimization"]["stage"] == 1


def test_a_section_that_is_none_is_left_for_the_check() -> None:
    changed = with_values(SIZES | {"zero_optimization": True}, {"zero_optimization.stage": 1})
    with pytest.raises(ConfigError, match=r"deepspeed\.zero_optimization must be an object, found True"):
        check_keys(changed, source="r.json")


def test_a_copy_of_a_recipe_reads_its_own_block() -> None:
    config = RunConfig.model_validate(recipe())
    assert config.engine.zero_stage == 0
    assert config.with_deepspeed({"zero_optimization.stage": 2}).engine.zero_stage == 2


def test_given_accumulation_must_agree_with_the_batch_sizes() -> None:
    agreeing = SIZES | {"gradient_accumulation_steps": 2}
    assert batch_algebra(agreeing, data_parallel=2, source="r.json").accumulation == 2
    with pytest.raises(
        ConfigError, match=r"gradient_accumulation_steps=2, but train_batch_size=16 .* = 4; leave it out"
    ):
        batch_algebra(agreeing, data_parallel=1, source="r.json")


@pytest.mark.parametrize(
    ("key", "value", "wanted"),
    [
        ("gradient_clipping", "one", "a number from 0 on"),
        ("gradient_clipping", -1, "a number from 0 on"),
        ("gradient_clipping", True, "a number from 0 on"),
        ("gradient_predivide_factor", float("nan"), "a number from 0 on"),
        ("prescale_gradients", "false", "true or false"),
        ("dump_state", 1, "true or false"),
        ("aio", [], "an object"),
        ("fp16", True, "an object"),
    ],
)
def test_plain_values_of_another_type_are_refused(key: str, value: object, wanted: str) -> None:
    with pytest.raises(ConfigError, match=rf"deepspeed.{key} must be {wanted}, found"):
        check_keys({key: value}, source="x")
