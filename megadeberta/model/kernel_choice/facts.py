"""What the outcome of a trial depends on: the GPU, the shape of the calls, the versions of the code."""

import hashlib
import platform
from collections.abc import Sequence
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

import megadeberta.ops
from megadeberta.batch import batch_fields
from megadeberta.config.run import RunConfig
from megadeberta.layers.objectives import list_layers, objective_of
from megadeberta.layers.recipe import micro_batch_of
from megadeberta.layers.relative import position_terms, relative_rows
from megadeberta.ops.attention.backends import BACKENDS


def trial_facts(
    config: RunConfig, backends: Sequence[str], *, dtype: torch.dtype, device: torch.device
) -> dict[str, str]:
    """By name; whatever changes one of them makes another trial."""
    model, micro_batch = config.model, micro_batch_of(config)
    weights = objective_of(config.objective).loss_weights(config.objective)
    return {
        "device": _device(device),
        "shape": f"{micro_batch.sequences} x {micro_batch.length} tokens, {micro_batch.slots} target rows, "
        f"{model.num_attention_heads // micro_batch.tensor} heads of {model.head_size}, width {model.hidden_size}",
        "position": f"{' '.join(position_terms(model)) or 'none'}, {relative_rows(model, micro_batch.length)} rows",
        "dtype": str(dtype).removeprefix("torch.") + (" in TF32" if _rounds_to_tf32(dtype) else ""),
        "dropout": f"{model.attention_probs_dropout_prob:g} {model.hidden_dropout_prob:g}",
        "layers": " ".join(sorted({layer.kind for layer in list_layers(model, config.objective)})),
        "batch": " ".join(batch_fields(config.data, config.objective)),
        "losses": f"{' '.join(weights)} {config.objective.autoregressive.share:g}",
        "residual norm": config.training.residual_norm,
        "backends": " ".join(f"{name}={_place(name)}" for name in backends),
        "versions": f"torch {torch.__version__}, triton {_version('triton')}, kernels {_sources()}",
    }


def _rounds_to_tf32(dtype: torch.dtype) -> bool:
    return dtype is torch.float32 and torch.backends.cuda.matmul.allow_tf32


def _device(device: torch.device) -> str:
    if device.type != "cuda":
        return f"{device.type} {platform.machine()}"
    found = torch.cuda.get_device_properties(device)
    memory = found.total_memory >> 30
    return f"{found.name}, capability {found.major}.{found.minor}, {found.multi_processor_count} SMs, {memory} GiB"


def _place(backend: str) -> str:
    where = BACKENDS[backend].implementation
    return where if isinstance(where, str) else f"{where.__module__}:{where.__qualname__}"


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "none"


@cache
def _sources() -> str:
    """Of all operators: the kernels read each other's files."""
    digest = hashlib.sha256()
    folder = Path(megadeberta.ops.__file__).parent
    for path in sorted(folder.rglob("*.py")):
        digest.update(f"{path.relative_to(folder)}\n".encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]
