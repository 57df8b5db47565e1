"""Types of the plain values of a deepspeed block: DeepSpeed finds a wrong one when the model is built, or never."""

from collections.abc import Mapping
from typing import Any

from megadeberta.errors import ConfigError

_SWITCHES = """prescale_gradients wall_clock_breakdown memory_breakdown dump_state disable_allgather disable_python_gc
    zero_allow_untested_optimizer zero_force_ds_cpu_optimizer dataloader_drop_last
    use_data_before_expert_parallelism""".split()
_NUMBERS = ("gradient_clipping", "gradient_predivide_factor")
_OBJECTS = """zero_optimization bf16 fp16 torch_autocast data_types comms_logger flops_profiler activation_checkpointing
    autotuning checkpoint aio data_efficiency pipeline""".split()


def check_plain_types(block: Mapping[str, Any], *, source: str) -> None:
    """
    Raises:
        ConfigError: a switch that is neither true nor false, a number that is none or below zero, or no object.
    """
    for key in _SWITCHES:
        if not isinstance(block.get(key, False), bool):
            raise ConfigError(f"{source}: deepspeed.{key} must be true or false, found {block[key]!r}")
    for key in _NUMBERS:
        value = block.get(key, 0)
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < float("inf"):
            raise ConfigError(f"{source}: deepspeed.{key} must be a number from 0 on, found {value!r}")
    if "steps_per_print" in block and (type(block["steps_per_print"]) is not int or block["steps_per_print"] < 1):
        raise ConfigError(
            f"{source}: deepspeed.steps_per_print must be a positive integer, found {block['steps_per_print']!r}"
        )
    for key in _OBJECTS:
        value = block.get(key, {})
        if not isinstance(value, Mapping):
            raise ConfigError(f"{source}: deepspeed.{key} must be an object, found {value!r}")
    for section in ("bf16", "fp16"):
        enabled = block.get(section, {}).get("enabled", False)
        if not isinstance(enabled, bool):
            raise ConfigError(f"{source}: deepspeed.{section}.enabled must be true or false, found {enabled!r}")
