"""v1 attention as microsoft/DeBERTa and transformers' ``deberta`` class store it: one packed projection per layer.

Shapes: N heads · H head size · D = N x H hidden size.
"""

import torch
from torch import Tensor

from megadeberta.errors import CheckpointError

_SELF = "attention.self"
QUERY, KEY, VALUE = (f"{_SELF}.{name}_proj" for name in ("query", "key", "value"))
PACKED_WEIGHT = f"{_SELF}.in_proj.weight"
QUERY_BIAS = f"{_SELF}.q_bias"
VALUE_BIAS = f"{_SELF}.v_bias"
_RENAMED = {
    f"{_SELF}.pos_key_proj.weight": f"{_SELF}.pos_proj.weight",
    f"{_SELF}.pos_query_proj.weight": f"{_SELF}.pos_q_proj.weight",
    f"{_SELF}.pos_query_proj.bias": f"{_SELF}.pos_q_proj.bias",
}


def pack(tensors: dict[str, Tensor], *, num_heads: int) -> dict[str, Tensor]:
    """Rename v2-style backbone tensors to v1 and pack the content projections of every layer."""
    packed: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        target = v1_name(name)
        if not target.endswith(PACKED_WEIGHT):
            packed[target] = tensor
        elif target not in packed:
            layer = target.removesuffix(PACKED_WEIGHT)
            query, key, value = (tensors[f"{layer}{part}.weight"] for part in (QUERY, KEY, VALUE))
            packed[target] = pack_projections(query, key, value, num_heads=num_heads)
    return packed


def unpack(tensors: dict[str, Tensor], *, num_heads: int) -> dict[str, Tensor]:
    """The inverse of ``pack``: v1 backbone names -> v2-style names.

    Raises:
        CheckpointError: a packed projection of another shape.
    """
    back = {new: old for old, new in _RENAMED.items()} | {QUERY_BIAS: f"{QUERY}.bias", VALUE_BIAS: f"{VALUE}.bias"}
    unpacked: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        layer, _, rest = name.partition(_SELF)
        own = _SELF + rest
        if own == PACKED_WEIGHT:
            if tensor.dim() != 2 or tensor.size(0) != 3 * tensor.size(1) or tensor.size(1) % num_heads:
                raise CheckpointError(
                    f"{name} has shape {tuple(tensor.shape)}; the packed projection of {num_heads} heads is 3D x D"
                )
            parts = unpack_projections(tensor, num_heads=num_heads)
            unpacked |= {f"{layer}{part}.weight": t for part, t in zip((QUERY, KEY, VALUE), parts, strict=True)}
        else:
            unpacked[layer + back.get(own, own) if rest else name] = tensor
    return unpacked


def pack_projections(query: Tensor, key: Tensor, value: Tensor, *, num_heads: int) -> Tensor:
    """Three ``[D, D]`` weights -> ``[3D, D]``, rows per head: H of the query, H of the key, H of the value."""
    parts = torch.stack([part.unflatten(0, (num_heads, -1)) for part in (query, key, value)], dim=1)  # [N, 3, H, D]
    return parts.flatten(0, 2)


def unpack_projections(packed: Tensor, *, num_heads: int) -> tuple[Tensor, Tensor, Tensor]:
    """``[3D, D]`` -> query, key and value weights ``[D, D]``."""
    query, key, value = packed.unflatten(0, (num_heads, 3, -1)).unbind(1)  # each [N, H, D]
    return query.flatten(0, 1), key.flatten(0, 1), value.flatten(0, 1)


def v1_name(name: str) -> str:
    """The v1 name that a v2-style backbone tensor ends up in; the three projections share one packed weight."""
    layer, found, rest = name.partition(_SELF)
    own = found + rest
    if own in _RENAMED:
        return layer + _RENAMED[own]
    if own in (f"{QUERY}.weight", f"{KEY}.weight", f"{VALUE}.weight"):
        return layer + PACKED_WEIGHT
    return layer + {f"{QUERY}.bias": QUERY_BIAS, f"{VALUE}.bias": VALUE_BIAS}.get(own, own)
