"""A small model in a DeepSpeed engine: what memory and traffic of ZeRO are measured on."""

import math

import deepspeed

from megadeberta.config.deepspeed_block import Precision
from megadeberta.config.objective import ObjectiveConfig
from megadeberta.config.run import RunConfig
from megadeberta.config.training import OptimizerConfig
from megadeberta.engine.build import build_engine
from megadeberta.layers.objectives import list_layers
from megadeberta.layers.shapes import parameter_shapes
from megadeberta.model.whole import WholeModel
from tests.models import masked_batch, run_config, tiny_v3

RANKS = 2
BUCKET = 20_011
"""Elements: a number that no parameter has."""
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


COUNT = sum(math.prod(shape) for shape in parameter_shapes(MODEL, ObjectiveConfig()).values())
LARGEST = max(math.prod(shape) for shape in parameter_shapes(MODEL, ObjectiveConfig()).values())


def zero_recipe(precision: Precision, stage: int, sums: Precision = "fp32", **zero: object) -> RunConfig:
    """Micro batch 1 on two ranks, two micro batches a step, completed.

    Args:
        sums: in which gradients are added up, over micro batches and over ranks.
    """
    zero = {"stage": stage, "reduce_bucket_size": BUCKET, "stage3_param_persistence_threshold": 0, **zero}
    block: dict[str, object] = {
        "train_batch_size": 4,
        "train_micro_batch_size_per_gpu": 1,
        "gradient_clipping": 1.0,
        "zero_optimization": zero,
    }
    if precision != "fp32":
        block |= {precision: {"enabled": True}, "communication_data_type": sums}
        block |= {"data_types": {"grad_accum_dtype": sums}} if stage else {}
    return run_config(model=MODEL, deepspeed=block).completed(parameters=COUNT, data_parallel=RANKS)


def tiny_engine(config: RunConfig) -> deepspeed.DeepSpeedEngine:
    """An engine around a new model."""
    whole = WholeModel(list_layers(MODEL, ObjectiveConfig()))
    return build_engine(whole, OptimizerConfig(lr=1e-3), block=config.deepspeed, timeout_seconds=60.0)
