"""The base model of the golden values, and the rule that fills its weights."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from megadeberta.config.model import ModelConfig
from megadeberta.config.objective import RtdConfig, part_of
from megadeberta.convert.formats.deberta_v1 import DebertaV1
from megadeberta.convert.formats.names import backbone_names, mlm_names
from megadeberta.layers.catalogue import backbone_layers, rtd_layers, token_model_layers
from megadeberta.model.whole import WholeModel
from tests.models import tiny_v3

IDS = torch.tensor([[1, 5, 7, 4, 9, 2], [1, 6, 4, 2, 0, 0]])
MASK = torch.tensor([[1] * 6, [1, 1, 1, 1, 0, 0]])


def golden_config(**changes: object) -> ModelConfig:
    """V 12, H 8, two layers, two heads, four buckets, eight positions, no dropout."""
    base = {
        "vocab_size": 12,
        "hidden_size": 8,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 16,
        "position_buckets": 4,
        "max_position_embeddings": 8,
        "enhanced_mask_decoder": False,
    }
    return tiny_v3(**base | changes)


def golden_backbone(config: ModelConfig) -> tuple[WholeModel, int]:
    """A float64 encoder filled by the rule over the Hugging Face key order, and its number of keys."""
    return _filled(WholeModel(backbone_layers(config)), backbone_names(config))


def golden_mlm(config: ModelConfig) -> tuple[WholeModel, int]:
    """A float64 masked-language model filled by the rule, and its number of keys."""
    return _filled(WholeModel(token_model_layers(config)), mlm_names(config))


def golden_discriminator(config: ModelConfig) -> tuple[WholeModel, int]:
    """A float64 discriminator with tables of its own, filled by the rule over the Microsoft key order. The source's
    absolute position table counts as a key and has no part in the outputs."""
    rtd = RtdConfig(embedding_sharing="nes")
    model = WholeModel([spec for spec in rtd_layers(config, rtd) if part_of(spec.name) == "discriminator"])
    names = {f"discriminator.{ours}": f"deberta.{theirs}" for ours, theirs in backbone_names(config).items()}
    for ours, theirs in {"dense": "dense", "layer_norm": "LayerNorm", "classifier": "classifier"}.items():
        for kind in ("weight", "bias"):
            names[f"discriminator.rtd_head.{ours}.{kind}"] = f"mask_predictions.{theirs}.{kind}"
    return _filled(model, names, unused=["deberta.embeddings.position_embeddings.weight"])


def golden_v1() -> tuple[WholeModel, WholeModel, int]:
    """v1 weights filled by the rule over transformers' v1 key order and unpacked: a v1 encoder, which has no key bias,
    and a v2 one with separate projections, whose key biases are zero; and the number of keys."""
    shape = {"share_att_key": False, "position_buckets": -1, "norm_rel_ebd": "none"}
    config = golden_config(**shape, key_bias=False)
    family = DebertaV1()
    with torch.no_grad():
        like = _by_their_names(WholeModel(backbone_layers(config)), config)
        packed = {key: tensor.double() for key, tensor in family.pack(like, config).items()}
        for i, key in enumerate(sorted(packed)):
            fill(packed[key], key, i)
        unpacked = family.unpack(packed, config)
        models = []
        for wanted in (config, golden_config(**shape)):
            model = WholeModel(backbone_layers(wanted)).double().eval()
            for key, parameter in _by_their_names(model, wanted).items():
                parameter.copy_(unpacked.get(key, torch.zeros(config.hidden_size, dtype=torch.float64)))
            models.append(model)
    return models[0], models[1], len(packed)


def _by_their_names(model: WholeModel, config: ModelConfig) -> dict[str, Tensor]:
    names = backbone_names(config)
    return {names[ours]: parameter for ours, parameter in model.named_parameters()}


def _filled(model: WholeModel, names: dict[str, str], *, unused: Sequence[str] = ()) -> tuple[WholeModel, int]:
    model = model.double().eval()
    by_their_name = {names[ours]: parameter for ours, parameter in model.named_parameters()}
    keys = sorted([*by_their_name, *unused])
    with torch.no_grad():
        for i, key in enumerate(keys):
            if key in by_their_name:
                fill(by_their_name[key], key, i)
    return model, len(keys)


def fill(parameter: Tensor, key: str, number: int) -> None:
    """``0.3 sin(0.7 n + i)``; LayerNorm weights ``1 + 0.1 sin(0.7 n + i)``."""
    wave = [math.sin(0.7 * n + number) for n in range(parameter.numel())]
    is_norm = key.endswith("LayerNorm.weight")
    values = torch.tensor([1 + 0.1 * w if is_norm else 0.3 * w for w in wave], dtype=torch.float64)
    parameter.copy_(values.view_as(parameter))
