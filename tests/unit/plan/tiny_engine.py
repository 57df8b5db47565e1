"""A small model in a DeepSpeed engine: what memory and traffic of ZeRO are measured on."""

import deepspeed
import torch

from megadeberta.config.model import ModelConfig
from megadeberta.config.objective import ObjectiveConfig
from megadeberta.config.training import OptimizerConfig
from megadeberta.engine.build import build_engine
from megadeberta.layers.objectives import list_layers
from megadeberta.model.whole import WholeModel

RANKS = 2
MODEL = ModelConfig(
    vocab_size=512,
    hidden_size=128,
    num_hidden_layers=2,
    num_attention_heads=4,
    intermediate_size=512,
    position_buckets=8,
    max_position_embeddings=32,
)


def zero_block(precision: str, stage: int) -> dict[str, object]:
    """Micro batch 1 on two ranks, two micro batches a step."""
    zero = {"stage": stage, "reduce_bucket_size": 60_000, "stage3_param_persistence_threshold": 0}
    block: dict[str, object] = {
        "train_batch_size": 4,
        "train_micro_batch_size_per_gpu": 1,
        "gradient_clipping": 1.0,
        "zero_optimization": zero,
    }
    return block if precision == "fp32" else block | {precision: {"enabled": True}}


def tiny_engine(precision: str, stage: int) -> deepspeed.DeepSpeedEngine:
    """An engine around a new model."""
    whole = WholeModel(list_layers(MODEL, ObjectiveConfig()))
    block = zero_block(precision, stage)
    return build_engine(whole, OptimizerConfig(lr=1e-3), block=block, timeout_seconds=60.0)


def micro_batch() -> dict[str, torch.Tensor]:
    """One sequence with three targets."""
    ids = torch.randint(5, 500, (1, 16))
    return {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "masked_positions": torch.arange(3).unsqueeze(0),
        "masked_labels": ids[:, :3],
        "sample_numbers": torch.zeros(1, dtype=torch.int64),
    }
