"""DeBERTa v2 and v3: transformers' ``deberta-v2``, whose names are the v2 names of this package."""

from collections.abc import Collection
from typing import TYPE_CHECKING, Any

from megadeberta.config.model import ModelConfig
from megadeberta.convert.formats.family import Family, OptIn

if TYPE_CHECKING:
    from torch import Tensor

_CONVOLUTION = ("conv_kernel_size", "conv_groups", "conv_act")


class DebertaV2(Family):
    """Every model of ours: v2's class computes v1's functions too, given zero key biases."""

    model_type = "deberta-v2"
    versions = "v2 and v3"
    class_prefix = "DebertaV2"
    has_fast_attention = True
    config_fields = ("position_buckets", "norm_rel_ebd", "share_att_key", *_CONVOLUTION)
    opt_in = OptIn("megadeberta.convert.formats.modeling_megadeberta", "DebertaV2ForMaskedLMWithMaskDecoder")

    def supports(self, config: ModelConfig) -> str | None:
        return None

    def recognizes(self, tensor_names: Collection[str]) -> bool:
        """All that the families before it leave."""
        return True

    def own_config(self, config: ModelConfig) -> dict[str, Any]:
        # transformers builds the table's LayerNorm even without relative attention.
        values: dict[str, Any] = {
            "position_buckets": config.position_buckets if config.position_buckets > 0 else -1,
            "norm_rel_ebd": config.norm_rel_ebd if config.relative_attention else "none",
            "share_att_key": config.share_att_key,
            "attention_head_size": config.head_size,
        }
        if config.conv_kernel_size:
            values |= {name: getattr(config, name) for name in _CONVOLUTION}
        return values

    def pack(self, backbone: "dict[str, Tensor]", config: ModelConfig) -> "dict[str, Tensor]":
        """transformers' class always has key biases; zero is what a model without them computes."""
        if config.key_bias:
            return backbone
        modules = (".key_proj.weight", ".pos_key_proj.weight")
        weights = {name: tensor for name, tensor in backbone.items() if name.endswith(modules)}
        biases = {
            f"{name.removesuffix('.weight')}.bias": tensor.new_zeros(tensor.size(0)) for name, tensor in weights.items()
        }
        return backbone | biases

    def why_superfluous(self, name: str, tensor: "Tensor", config: ModelConfig) -> str | None:
        is_padding = not config.key_bias and name.endswith("key_proj.bias") and not tensor.any()
        return "all zero: the model has no key biases" if is_padding else None
