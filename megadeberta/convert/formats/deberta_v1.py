"""DeBERTa v1: transformers' ``deberta``, with one packed projection per layer, as microsoft/DeBERTa stores it.

Shapes: N heads · H head size · D = N x H hidden size.
"""

from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING

from megadeberta.config.model import ModelConfig
from megadeberta.convert.formats.family import Family
from megadeberta.errors import CheckpointError

if TYPE_CHECKING:
    from torch import Tensor

_SELF = "attention.self"
QUERY, KEY, VALUE = (f"{_SELF}.{name}_proj" for name in ("query", "key", "value"))
PACKED_WEIGHT = f"{_SELF}.in_proj.weight"
QUERY_BIAS = f"{_SELF}.q_bias"
VALUE_BIAS = f"{_SELF}.v_bias"
_RENAMED = {
    f"{_SELF}.pos_key_proj.weight": f"{_SELF}.pos_proj.weight",
    f"{_SELF}.pos_query_proj.weight": f"{_SELF}.pos_q_proj.weight",
    f"{_SELF}.pos_query_proj.bias": f"{_SELF}.pos_q_proj.bias",
    f"{QUERY}.bias": QUERY_BIAS,
    f"{VALUE}.bias": VALUE_BIAS,
}
"""v2 name -> v1 name of what is not packed, behind the layer's prefix."""


class DebertaV1(Family):
    """Keys without bias, separate position projections, linear distances and a plain relative table."""

    model_type = "deberta"
    versions = "v1"
    class_prefix = "Deberta"
    has_fast_attention = True
    key_bias = False

    def supports(self, config: ModelConfig) -> str | None:
        reasons = {
            "its keys have biases": config.key_bias,
            "its distances are in buckets": config.position_buckets > 0,
            "its relative table has a LayerNorm": config.norm_rel_ebd != "none",
            "position and content share projections": config.share_att_key,
            "it has a convolution": config.conv_kernel_size > 0,
        }
        return next((reason for reason, is_so in reasons.items() if is_so), None)

    def recognizes(self, tensor_names: Collection[str]) -> bool:
        return any(name.endswith(".in_proj.weight") for name in tensor_names)

    def counted_terms(self, names: Sequence[str]) -> int:
        """All of them, terms or not."""
        return len(names)

    def pack(self, backbone: "dict[str, Tensor]", config: ModelConfig) -> "dict[str, Tensor]":
        """Rename, and pack the content projections of every layer."""
        packed: dict[str, Tensor] = {}
        for name, tensor in backbone.items():
            target = self.stored_name(name)
            if not target.endswith(PACKED_WEIGHT):
                packed[target] = tensor
            elif target not in packed:
                layer = target.removesuffix(PACKED_WEIGHT)
                query, key, value = (backbone[f"{layer}{module}.weight"] for module in (QUERY, KEY, VALUE))
                packed[target] = pack_projections(query, key, value, num_heads=config.num_attention_heads)
        return packed

    def unpack(self, backbone: "dict[str, Tensor]", config: ModelConfig) -> "dict[str, Tensor]":
        num_heads = config.num_attention_heads
        v2_names = {theirs: name for name, theirs in _RENAMED.items()}
        unpacked: dict[str, Tensor] = {}
        for name, tensor in backbone.items():
            layer, separator, rest = name.partition(_SELF)
            own = separator + rest
            if own == PACKED_WEIGHT:
                if tensor.dim() != 2 or tensor.size(0) != 3 * tensor.size(1) or tensor.size(1) % num_heads:
                    raise CheckpointError(
                        f"{name} has shape {tuple(tensor.shape)}; the packed projection of {num_heads} heads is 3D x D"
                    )
                projections = unpack_projections(tensor, num_heads=num_heads)
                modules = zip((QUERY, KEY, VALUE), projections, strict=True)
                unpacked |= {f"{layer}{module}.weight": weight for module, weight in modules}
            else:
                unpacked[layer + v2_names.get(own, own)] = tensor
        return unpacked

    def stored_name(self, name: str) -> str:
        """The three content projections are stored in one packed weight."""
        layer, separator, rest = name.partition(_SELF)
        own = separator + rest
        if own in (f"{QUERY}.weight", f"{KEY}.weight", f"{VALUE}.weight"):
            return layer + PACKED_WEIGHT
        return layer + _RENAMED.get(own, own)


def pack_projections(query: "Tensor", key: "Tensor", value: "Tensor", *, num_heads: int) -> "Tensor":
    """Three ``[D, D]`` weights -> ``[3D, D]``, rows per head: H of the query, H of the key, H of the value."""
    import torch

    heads = [weight.unflatten(0, (num_heads, -1)) for weight in (query, key, value)]  # each [N, H, D]
    return torch.stack(heads, dim=1).flatten(0, 2)  # [N, 3, H, D] -> [3D, D]


def unpack_projections(packed: "Tensor", *, num_heads: int) -> "tuple[Tensor, Tensor, Tensor]":
    """``[3D, D]`` -> query, key and value weights ``[D, D]``."""
    query, key, value = packed.unflatten(0, (num_heads, 3, -1)).unbind(1)  # each [N, H, D]
    return query.flatten(0, 1), key.flatten(0, 1), value.flatten(0, 1)
