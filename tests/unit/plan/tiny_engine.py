"""A small model in a DeepSpeed engine: what memory and traffic of ZeRO are measured on."""

import deepspeed

from megadeberta.config.objective import ObjectiveConfig
from megadeberta.config.training import OptimizerConfig
from megadeberta.engine.build import build_engine
from megadeberta.layers.objectives import list_layers
from megadeberta.model.whole import WholeModel
from tests.models import masked_batch, tiny_v3

RANKS = 2
MODEL = tiny_v3(
    vocab_size=512,
    hidden_size=128,
    num_hidden_layers=2,
    num_attention_heads=4,
    intermediate_size=512,
    position_buckets=8,
    max_position_embeddings=32,
    dropout=0.1,
)
MICRO_BATCH = masked_batch(MODEL, samples=1, length=16)


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
