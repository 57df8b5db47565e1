"""Checks across sections."""

from typing import Any

import pytest

from megadeberta.config.deepspeed_block import BatchAlgebra
from megadeberta.config.load import parse_run_config
from megadeberta.errors import ConfigError
from megadeberta.preflight.validate import validate_run
from tests.models import recipe


def _validate(world_size: int = 1, **sections: Any) -> BatchAlgebra:
    return validate_run(parse_run_config(recipe(**sections), source="r.json"), world_size=world_size, source="r.json")[
        0
    ]


def test_valid_recipe_gives_the_batch_algebra() -> None:
    assert _validate(world_size=2) == BatchAlgebra(global_batch=16, micro_batch=4, accumulation=2, data_parallel=2)


@pytest.mark.parametrize(
    "model",
    [{"enhanced_mask_decoder": True}, {"enhanced_mask_decoder": False, "position_biased_input": True}],
)
def test_sequence_longer_than_the_absolute_positions_is_refused(model: dict[str, Any]) -> None:
    with pytest.raises(
        ConfigError, match=r"r\.json: data\.sequence_length=129 is longer than model\.max_position_embeddings=128"
    ):
        _validate(model=model, data={"sequence_length": 129})
    _validate(model=model, data={"sequence_length": 128})


def test_model_without_absolute_positions_takes_longer_sequences() -> None:
    _validate(model={"enhanced_mask_decoder": False}, data={"sequence_length": 1000})


@pytest.mark.parametrize("warmup", [100, 101])
def test_warm_up_that_fills_the_run_is_refused(warmup: int) -> None:
    with pytest.raises(ConfigError, match=rf"schedule\.warmup_steps={warmup} leaves nothing of training\.steps=100"):
        _validate(schedule={"warmup_steps": warmup})
    _validate(schedule={"warmup_steps": 99})


def test_own_optimizer_under_zero_must_be_allowed() -> None:
    block = {"zero_optimization": {"stage": 1}}
    with pytest.raises(ConfigError, match=r"bias_correction=false under ZeRO needs deepspeed\.zero_allow_untested"):
        _validate(optimizer={"bias_correction": False}, deepspeed=block)
    _validate(optimizer={"bias_correction": False}, deepspeed=block | {"zero_allow_untested_optimizer": True})
    _validate(optimizer={"bias_correction": False})


@pytest.mark.parametrize("name", ["muon", "lamb", "stable_adamw"])
def test_optimizers_of_whole_tensors_run_where_a_rank_has_most_tensors_whole(name: str) -> None:
    for stage in (0, 1, 2):
        _validate(optimizer={"name": name}, deepspeed={"zero_optimization": {"stage": stage}})
    with pytest.raises(ConfigError, match=rf"name='{name}' looks at whole tensors.*use stage 1 or 2"):
        _validate(optimizer={"name": name}, deepspeed={"zero_optimization": {"stage": 3}})
    offload = {"zero_optimization": {"stage": 1, "offload_optimizer": {"device": "cpu"}}}
    with pytest.raises(ConfigError, match=rf"name='{name}' with .*offload_optimizer.*remove one of the two"):
        _validate(optimizer={"name": name}, deepspeed=offload)


def test_an_average_of_weights_in_files_is_refused() -> None:
    offload = {"stage": 3, "offload_optimizer": {"device": "nvme", "nvme_path": "disk"}}
    with pytest.raises(ConfigError, match=r"training\.ema_decay=0\.99 with .*device='nvme'.*use device='cpu'"):
        _validate(training={"ema_decay": 0.99}, deepspeed={"zero_optimization": offload})
    _validate(training={"ema_decay": 0.99}, deepspeed={"zero_optimization": {"stage": 3}})


def test_settings_of_another_optimizer_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"bias_correction=false is AdamW's, and optimizer.name='lamb'"):
        _validate(optimizer={"name": "lamb", "bias_correction": False})
    with pytest.raises(ConfigError, match=r"muon_lr=0\.01 with optimizer.name='adamw'.*use optimizer.name=muon"):
        _validate(optimizer={"muon_lr": 0.01})
    _validate(optimizer={"name": "muon", "muon_lr": 0.01})


def test_accumulation_in_bf16_must_be_asked_for_where_deepspeed_has_no_other() -> None:
    block = {"bf16": {"enabled": True}, "zero_optimization": {"stage": 0}}
    with pytest.raises(
        ConfigError, match=r"stage=0 adds up 4 micro batches in bf16.*use stage 1 or more, or accept it"
    ):
        _validate(deepspeed=block)
    _validate(deepspeed=block | {"data_types": {"grad_accum_dtype": "bf16"}})
    _validate(deepspeed=block | {"train_batch_size": 4})  # nothing to add up
    _validate(deepspeed=block | {"zero_optimization": {"stage": 1}})


def test_unknown_deepspeed_key_is_found_with_the_recipe_named() -> None:
    with pytest.raises(ConfigError, match=r"r\.json: unknown key deepspeed\.zero_optimisation"):
        _validate(deepspeed={"zero_optimisation": {}})


@pytest.mark.parametrize("name", ["ar", "mlm_ar"])
def test_next_tokens_and_a_convolution_that_sees_them_exclude_each_other(name: str) -> None:
    with pytest.raises(
        ConfigError, match=rf"objective\.name='{name}' predicts the next token.*the convolution sees it"
    ):
        _validate(objective={"name": name}, model={"conv_kernel_size": 3})
    _validate(objective={"name": name})


def test_generator_that_is_no_model_is_refused_before_anything_is_built() -> None:
    with pytest.raises(ConfigError, match=r"the generator is no model: .*num_hidden_layers >= 2.*generator_layers"):
        _validate(objective={"name": "rtd"})  # half of two layers, with the enhanced mask decoder
    _validate(objective={"name": "rtd", "rtd": {"generator_layers": 2}})


def test_one_table_and_two_updates_exclude_each_other() -> None:
    rtd = {"embedding_sharing": "es", "decoupled": True}
    with pytest.raises(ConfigError, match=r"decoupled=true with embedding_sharing='es'.*do not see each other's"):
        _validate(objective={"name": "rtd", "rtd": rtd})


def test_two_updates_under_zero_3_are_refused() -> None:
    objective = {"name": "rtd", "rtd": {"decoupled": True, "generator_layers": 2}}
    with pytest.raises(ConfigError, match=r"decoupled=true does not work with deepspeed\.zero_optimization\.stage=3"):
        _validate(objective=objective, deepspeed={"zero_optimization": {"stage": 3}})
    _validate(objective=objective, deepspeed={"zero_optimization": {"stage": 2}})


def test_compiled_layers_are_refused_where_hooks_work_inside_a_layer() -> None:
    compiled = {"compile": "layers"}
    with pytest.raises(ConfigError, match=r"compile=layers with deepspeed\.zero_optimization\.stage=3: .*use stage 2"):
        _validate(training=compiled, deepspeed={"zero_optimization": {"stage": 3}})
    with pytest.raises(ConfigError, match=r"compile=layers with training\.selective_recompute=true: .*one of the two"):
        _validate(training=compiled | {"selective_recompute": True})
    _validate(training=compiled, deepspeed={"zero_optimization": {"stage": 2}})


def test_a_profile_must_lie_within_the_run() -> None:
    _validate(logging={"profile_steps": [1, 100]})
    with pytest.raises(ConfigError, match=r"logging\.profile_steps=\[99, 101\] ends after the last step, .*=100"):
        _validate(logging={"profile_steps": [99, 101]})
    for window in ([3], [3, 2], [1, 2, 3]):
        with pytest.raises(ConfigError, match=r"must be \[first, last\]"):
            _validate(logging={"profile_steps": window})


def test_steps_are_passed_over_where_the_optimizer_is_on_the_device() -> None:
    _validate(numerics={"skip_limit": 8})
    offload = {"zero_optimization": {"stage": 2, "offload_optimizer": {"device": "cpu"}}}
    with pytest.raises(
        ConfigError, match=r"numerics\.skip_limit=8 passes over .*offload_optimizer puts it on the host"
    ):
        _validate(numerics={"skip_limit": 8}, deepspeed=offload)


def test_replicas_are_compared_where_there_are_any() -> None:
    _validate(numerics={"replicas_every": 10}, deepspeed={"zero_optimization": {"stage": 2}})
    with pytest.raises(ConfigError, match=r"numerics\.replicas_every=10 compares weights .*stage=3 each is held once"):
        _validate(numerics={"replicas_every": 10}, deepspeed={"zero_optimization": {"stage": 3}})


def _rtd(part: str = "both", model: dict | None = None, **rtd: object) -> dict:
    objective = {"name": "rtd", "rtd": {"generator_layers": 2} | rtd}
    return {
        "objective": objective,
        "model": {"enhanced_mask_decoder": False} | (model or {}),
        "training": {"part": part},
    }


def test_a_generator_of_another_width_needs_whole_heads_and_no_wider_positions() -> None:
    _validate(**_rtd(generator_hidden_size=32))
    with pytest.raises(
        ConfigError, match=r"hidden_size=40 is no multiple of the model's head size 16; the nearest is 32"
    ):
        _validate(**_rtd(generator_hidden_size=40))
    with pytest.raises(
        ConfigError, match=r"width embedding_size=64 to hidden states of width 32.*embedding_sharing=nes"
    ):
        _validate(**_rtd(generator_hidden_size=32, model={"enhanced_mask_decoder": True}))
    _validate(**_rtd(generator_hidden_size=32, embedding_sharing="nes", model={"enhanced_mask_decoder": True}))
    with pytest.raises(ConfigError, match=r"parallel.tensor=4 does not divide the generator's num_attention_heads=2 "):
        _validate(world_size=4, parallel={"tensor": 4}, **_rtd(generator_hidden_size=32))


@pytest.mark.parametrize(
    ("part", "sharing", "more", "said"),
    [
        ("discriminator", "es", {}, "both parts have one table.*use gdes or nes"),
        ("generator", "gdes", {}, "adds to the generator's.*--model generator"),
        (
            "discriminator",
            "gdes",
            {"deepspeed": {"zero_optimization": {"stage": 3}}},
            "does not work with deepspeed.zero",
        ),
        ("discriminator", "nes", {"parallel": {"pipeline": 2}}, "does not work with parallel.pipeline"),
    ],
)
def test_one_part_alone_is_refused_where_the_other_would_change(part: str, sharing: str, more: dict, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        _validate(world_size=2, **_rtd(part, embedding_sharing=sharing), **more)


def test_one_part_alone_is_for_models_of_two() -> None:
    with pytest.raises(ConfigError, match=r"training.part='generator' is for objective.name='rtd'"):
        _validate(training={"part": "generator"})
    _validate(**_rtd("discriminator"))
    _validate(**_rtd("generator", embedding_sharing="nes"))
