"""A small float64 model with random values in every tensor, and batches for it."""

import torch
from torch import Tensor

from megadeberta.config.model import ModelConfig
from megadeberta.layers.catalogue import token_model_layers
from megadeberta.model.whole import WholeModel

VARIANTS = {
    "v3": {},
    "separate projections": {"share_att_key": False},
    "convolution": {"conv_kernel_size": 3, "share_att_key": False},
    "linear distances": {"position_buckets": -1, "norm_rel_ebd": "none"},
    "v1": {"position_buckets": -1, "norm_rel_ebd": "none", "share_att_key": False, "key_bias": False},
    "input positions": {"position_biased_input": True, "enhanced_mask_decoder": False, "type_vocab_size": 2},
    "c2p alone": {"pos_att_type": "c2p"},
    "p2c alone": {"pos_att_type": "p2c"},
    "no relative attention": {"relative_attention": False},
}


def small_config(**changes: object) -> ModelConfig:
    """Three layers of width 16, two heads, six buckets over distances up to 11, no dropout."""
    base = {
        "vocab_size": 40,
        "hidden_size": 16,
        "num_hidden_layers": 3,
        "num_attention_heads": 2,
        "intermediate_size": 24,
        "position_buckets": 6,
        "max_position_embeddings": 12,
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
    }
    return ModelConfig.model_validate(base | changes)


def small_model(config: ModelConfig, *, seed: int = 1) -> WholeModel:
    """Float64; LayerNorm weights around one, everything else normal(0, 0.3)."""
    model = WholeModel(token_model_layers(config)).double().eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.normal_(0, 0.3, generator=generator)
            if name.endswith("layer_norm.weight"):
                parameter += 1.0
    return model


def batch(config: ModelConfig, *, lengths: tuple[int, ...] = (9, 6, 2), seed: int = 2) -> tuple[Tensor, Tensor]:
    """Random ids ``[B, max(lengths)]`` and their 0/1 mask."""
    generator = torch.Generator().manual_seed(seed)
    mask = torch.zeros(len(lengths), max(lengths), dtype=torch.long)
    for row, length in enumerate(lengths):
        mask[row, :length] = 1
    ids = torch.randint(4, config.vocab_size, mask.shape, generator=generator)
    return ids * mask, mask


def rtd_logits(model: WholeModel, ids: Tensor, mask: Tensor, document_starts: Tensor | None = None) -> Tensor:
    """``[B, L]``: above 0 where the discriminator takes the token for a replaced one."""
    hidden = model.encode(ids, mask, document_starts=document_starts)
    return model.get_submodule("discriminator.rtd_head").logits(hidden, document_starts)
