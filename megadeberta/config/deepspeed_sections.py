"""Keys and plain types inside the sections of a deepspeed block, as the installed DeepSpeed declares them.

Its classes are read as source, not imported: that would load torch, and a mistake in a name is said at once. What only
its validators know is found when the model is built (``engine/build.py``).
"""

import ast
import difflib
import functools
import math
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from megadeberta.errors import ConfigError

_CLASSES = {
    "zero_optimization": ("runtime/zero/config.py", "DeepSpeedZeroConfig"),
    "zero_optimization.offload_param": ("runtime/zero/offload_config.py", "DeepSpeedZeroOffloadParamConfig"),
    "zero_optimization.offload_optimizer": ("runtime/zero/offload_config.py", "DeepSpeedZeroOffloadOptimizerConfig"),
    "bf16": ("runtime/precision_config.py", "DeepSpeedBF16Config"),
    "fp16": ("runtime/precision_config.py", "DeepSpeedFP16Config"),
    "comms_logger": ("comm/config.py", "CommsLoggerConfig"),
}
"""Section -> where DeepSpeed 0.19.8 declares it; all of these refuse an unknown key."""
_READ_BY_KEY = {
    "flops_profiler": {
        **dict.fromkeys(("enabled", "detailed"), "bool"),
        **dict.fromkeys(("profile_step", "module_depth", "top_modules"), "int"),
        "recompute_fwd_factor": "float",
        "output_file": "",
    },
    "activation_checkpointing": {
        **dict.fromkeys(("partition_activations", "contiguous_memory_optimization", "cpu_checkpointing"), "bool"),
        **dict.fromkeys(("synchronize_checkpoint_boundary", "profile"), "bool"),
        "number_checkpoints": "Optional[int]",
    },
    "aio": {
        **dict.fromkeys(("block_size", "queue_depth", "intra_op_parallelism"), "int"),
        **dict.fromkeys(("single_submit", "overlap_events", "use_gds"), "bool"),
    },
    "pipeline": {
        **dict.fromkeys(("seed_layers", "pipe_partitioned", "grad_partitioned"), "bool"),
        **dict.fromkeys(("stages", "partition"), ""),
        "activation_checkpoint_interval": "int",
    },
}
"""Sections that DeepSpeed 0.19.8 reads key by key (their constants.py, and runtime/config.py): it takes any value, and
ignores an unknown key without a word."""
_WANTED = {"bool": "true or false", "int": "a whole number", "float": "a number"}


def check_sections(block: Mapping[str, Any], *, source: str) -> None:
    """
    Raises:
        ConfigError: a section has a key that DeepSpeed does not know, or a value of another type.
    """
    for name in (*_CLASSES, *_READ_BY_KEY):
        section: Any = block
        for key in name.split("."):
            section = section.get(key) if isinstance(section, Mapping) else None
        known = _READ_BY_KEY[name] if name in _READ_BY_KEY else _fields(name)
        if not isinstance(section, Mapping) or not known:
            continue
        for key, value in section.items():
            if key not in known:
                near = difflib.get_close_matches(key, sorted(known), n=1, cutoff=0.5)
                hint = f"did you mean {near[0]!r}?" if near else "DeepSpeed 0.19.8 has no such key"
                raise ConfigError(f"{source}: unknown key deepspeed.{name}.{key}; {hint}")
            wanted = known[key].removeprefix("Optional[").removesuffix("]")
            if not _is(value, wanted) and (value is not None or wanted == known[key]):
                raise ConfigError(f"{source}: deepspeed.{name}.{key} must be {_WANTED[wanted]}, found {value!r}")


def _is(value: Any, wanted: str) -> bool:
    if wanted not in _WANTED:
        return True
    if isinstance(value, bool) or wanted == "bool":
        return isinstance(value, bool) and wanted == "bool"
    if not isinstance(value, int | float) or not math.isfinite(value):
        return False
    return wanted == "float" or float(value).is_integer()  # JSON has 5e8 as a float


@functools.cache
def _fields(name: str) -> dict[str, str]:
    """Keys of a section and what each takes, "" where that is no plain type; empty where DeepSpeed is not installed."""
    spec = find_spec("deepspeed")
    if spec is None or not spec.submodule_search_locations:
        return {}
    path, class_name = Path(spec.submodule_search_locations[0]) / _CLASSES[name][0], _CLASSES[name][1]
    if not path.is_file():
        return {}
    classes = {node.name: node for node in ast.parse(path.read_bytes()).body if isinstance(node, ast.ClassDef)}
    found: dict[str, str] = {}
    for node in classes[class_name].body if class_name in classes else ():
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            found |= dict.fromkeys([node.target.id, *_aliases(node.value)], ast.unparse(node.annotation))
    return found


def _aliases(value: ast.expr | None) -> list[str]:
    keywords = value.keywords if isinstance(value, ast.Call) else []
    return [
        word.value.value
        for word in keywords
        if word.arg == "alias" and isinstance(word.value, ast.Constant) and isinstance(word.value.value, str)
    ]
