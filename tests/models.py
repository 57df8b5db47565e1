"""Models, batches and recipes small enough to make in every test; a test names only what it is about.

    config = tiny_v3(position_buckets=4, dropout=0.1)
    terms, _ = random_model(config).double()(**masked_batch(config, samples=2))
    run = run_config(model=config, objective=tiny_rtd("es"), deepspeed={"zero_optimization": {"stage": 1}})

Shapes: B batch · L length · Q target slots.
"""

import copy
import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from megadeberta.batch import Batch
from megadeberta.config.model import ModelConfig
from megadeberta.config.objective import ObjectiveConfig
from megadeberta.config.run import RunConfig
from megadeberta.layers.objectives import list_layers
from megadeberta.model.whole import WholeModel

Changes = dict[str, object]

MASK_ID = 3
# What makes a model a v1, or a v2 with convolution; the defaults of ModelConfig are v3.
V1: Changes = {"key_bias": False, "share_att_key": False, "position_buckets": -1, "norm_rel_ebd": "none"}
V2: Changes = {"conv_kernel_size": 3}
INPUT_POSITIONS: Changes = {"position_biased_input": True, "enhanced_mask_decoder": False, "type_vocab_size": 2}
VARIANTS: dict[str, Changes] = {
    "v3": {},
    "separate projections": {"share_att_key": False},
    "convolution": V2 | {"share_att_key": False},
    "linear distances": {"position_buckets": -1, "norm_rel_ebd": "none"},
    "v1": V1,
    "input positions": INPUT_POSITIONS,
    "c2p alone": {"pos_att_type": "c2p"},
    "p2c alone": {"pos_att_type": "p2c"},
    "no relative attention": {"relative_attention": False},
}
_TINY: Changes = {
    "vocab_size": 40,
    "hidden_size": 16,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "position_buckets": 6,
    "max_position_embeddings": 12,
}
RECIPE: dict[str, Any] = {
    "name": "tiny",
    "model": {
        "vocab_size": 1024,
        "hidden_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 128,
        "max_position_embeddings": 128,
        "position_buckets": 32,
    },
    "data": {"train": "shards/train", "tokenizer": "shards/spm.model", "sequence_length": 64},
    "optimizer": {"lr": 1e-3},
    "schedule": {"warmup_steps": 10},
    "training": {"steps": 100, "output_dir": "runs/tiny"},
    "deepspeed": {"train_batch_size": 16, "train_micro_batch_size_per_gpu": 4},
}
"""A valid recipe; nothing of it exists on disk."""


# Configurations


def tiny_v3(*, dropout: float = 0.0, **changes: object) -> ModelConfig:
    """Three layers of width 16, two heads, six buckets over distances up to 11; ``dropout`` of both kinds."""
    probabilities = {"hidden_dropout_prob": dropout, "attention_probs_dropout_prob": dropout}
    return ModelConfig.model_validate(_TINY | probabilities | changes)


def tiny_v2(**changes: object) -> ModelConfig:
    """The same with a convolution beside the first layer."""
    return tiny_v3(**V2 | changes)


def tiny_rtd(sharing: str = "gdes", **changes: object) -> ObjectiveConfig:
    """Replaced token detection with a generator of two layers, the fewest that a mask decoder allows."""
    return ObjectiveConfig.model_validate(
        {"name": "rtd", "rtd": {"embedding_sharing": sharing, "generator_layers": 2} | changes}
    )


def random_model(config: ModelConfig, *, seed: int = 1) -> WholeModel:
    """Of masked tokens, in float64; LayerNorm weights around one, everything else normal(0, 0.3)."""
    model = WholeModel(list_layers(config, ObjectiveConfig())).double().eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.normal_(0, 0.3, generator=generator)
            if name.endswith("layer_norm.weight"):
                parameter += 1.0
    return model


def rtd_logits(model: WholeModel, ids: Tensor, mask: Tensor, document_starts: Tensor | None = None) -> Tensor:
    """``[B, L]``: above 0 where the discriminator takes the token for a replaced one."""
    hidden = model.encode(ids, mask, document_starts=document_starts)
    return model.get_submodule("discriminator.rtd_head").logits(hidden, document_starts)


# Batches


def padded_ids(config: ModelConfig, *, lengths: tuple[int, ...] = (9, 6, 2), seed: int = 2) -> tuple[Tensor, Tensor]:
    """Random ids ``[B, max(lengths)]`` and their 0/1 mask."""
    generator = torch.Generator().manual_seed(seed)
    mask = torch.zeros(len(lengths), max(lengths), dtype=torch.long)
    for row, length in enumerate(lengths):
        mask[row, :length] = 1
    ids = torch.randint(4, config.vocab_size, mask.shape, generator=generator)
    return ids * mask, mask


def hide(ids: Tensor, positions: Tensor, *, used: Tensor | None = None, mask_id: int = MASK_ID, step: int = 0) -> Batch:
    """The batch of a step in which these tokens are masked.

    Args:
        ids: ``[B, L]``, 0 at padding.
        positions: ``[B, Q]``.
        used: ``[B, Q]``, false where a slot shall be empty.
    """
    used = torch.ones_like(positions, dtype=torch.bool) if used is None else used
    labels, positions = ids.gather(1, positions) * used, positions * used
    return {
        "input_ids": ids.scatter(1, positions, torch.where(used, mask_id, ids[:, :1])),
        "attention_mask": (ids != 0).long(),
        "masked_positions": positions,
        "masked_labels": labels,
        "sample_numbers": torch.arange(len(ids)) + (step << 32),
    }


def masked_batch(config: ModelConfig, *, samples: int = 4, length: int = 12, slots: int = 3, step: int = 0) -> Batch:
    """Sequences with different lengths and numbers of targets; some slots are empty. Replaced token detection has the
    same batches."""
    generator = torch.Generator().manual_seed(1000 + step)
    ids = torch.randint(4, config.vocab_size, (samples, length), generator=generator)
    lengths = torch.randint(length // 2, length + 1, (samples, 1), generator=generator)
    ids = ids * (torch.arange(length) < lengths)
    positions = torch.stack([torch.randperm(length // 2, generator=generator)[:slots] for _ in range(samples)])
    used = torch.arange(slots) < torch.randint(1, slots + 1, (samples, 1), generator=generator)
    return hide(ids, positions, used=used, step=step)


def full_batch(config: ModelConfig, *, samples: int = 4, length: int = 12, slots: int = 3, step: int = 0) -> Batch:
    """As ``masked_batch``, without padding and with a target in every slot."""
    generator = torch.Generator().manual_seed(2000 + step)
    ids = torch.randint(4, config.vocab_size, (samples, length), generator=generator)
    positions = torch.stack([torch.randperm(length, generator=generator)[:slots] for _ in range(samples)])
    return hide(ids, positions, step=step)


def read_left_to_right(batch: Batch, *prefix_lengths: int) -> Batch:
    """The batch with prefixes that are seen from both sides; 0 = none, the length = all. They come again and again."""
    repeats = len(batch["input_ids"]) // len(prefix_lengths)
    return batch | {"prefix_lengths": torch.tensor(prefix_lengths).repeat(repeats)}


def pack_two(batch: Batch, *borders: int) -> Batch:
    """The batch with sequences of two documents each, the second from the border on."""
    places, border = torch.arange(batch["input_ids"].size(1)), torch.tensor(borders).unsqueeze(1)
    starts = torch.where(places < border, 0, border).expand_as(batch["input_ids"])
    return batch | {"document_starts": starts.contiguous()}


# Recipes


def recipe(**sections: Any) -> dict[str, Any]:
    """``RECIPE`` with values of some sections replaced: ``recipe(model={"hidden_size": 96})``.

    A section that is no dict, such as a ``ModelConfig``, takes the whole section's place.
    """
    values = copy.deepcopy(RECIPE)
    for section, content in sections.items():
        if isinstance(content, dict) and isinstance(values.get(section), dict):
            values[section].update(content)
        else:
            values[section] = content
    return values


def run_config(**sections: Any) -> RunConfig:
    """The same as a checked configuration."""
    return RunConfig.model_validate(recipe(**sections))


def write_json(path: Path, values: Any) -> Path:
    """Write the values as a JSON file, such as a recipe."""
    path.write_text(json.dumps(values), encoding="utf-8")
    return path
