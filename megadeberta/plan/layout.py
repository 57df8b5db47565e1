"""A layout of a recipe: the numbers that decide what one rank holds and sends."""

from dataclasses import dataclass

from megadeberta.config.deepspeed_block import BatchAlgebra, zero_stage
from megadeberta.config.run import RunConfig
from megadeberta.topology import Topology


@dataclass(frozen=True)
class Layout:
    """tensor x pipeline x data ranks, and how each treats its share."""

    tensor: int
    pipeline: int
    data: int
    zero_stage: int
    micro_batch: int
    accumulation: int
    sequence_parallel: bool = False
    activation_checkpointing: bool = False

    @classmethod
    def of_run(cls, config: RunConfig, algebra: BatchAlgebra, topology: Topology) -> "Layout":
        """The layout that a recipe asks for."""
        return cls(
            tensor=topology.tensor,
            pipeline=topology.pipeline,
            data=topology.data,
            zero_stage=zero_stage(config.deepspeed),
            micro_batch=algebra.micro_batch,
            accumulation=algebra.accumulation,
            sequence_parallel=config.parallel.sequence_parallel and topology.tensor > 1,
            activation_checkpointing=config.parallel.activation_checkpointing,
        )

    @property
    def world_size(self) -> int:
        return self.tensor * self.pipeline * self.data

    @property
    def global_batch(self) -> int:
        return self.micro_batch * self.accumulation * self.data

    def in_flight(self, stage: int) -> int:
        """Micro batches whose activations a stage holds at once (DeepSpeed ``runtime/pipe/schedule.py``: 1F1B)."""
        return min(self.pipeline - stage, self.accumulation)

    @property
    def bubble(self) -> float:
        """Share of the step in which a stage waits for the pipeline to fill and to drain."""
        return (self.pipeline - 1) / (self.accumulation + self.pipeline - 1)

    def applied_to(self, config: RunConfig) -> RunConfig:
        """``config`` with this layout."""
        zero = config.deepspeed.get("zero_optimization", {}) | {"stage": self.zero_stage}
        block = config.deepspeed | {
            "zero_optimization": zero,
            "train_micro_batch_size_per_gpu": self.micro_batch,
            **_pipeline_block(self),
        }
        if "gradient_accumulation_steps" in block:
            block["gradient_accumulation_steps"] = self.accumulation
        parallel = config.parallel.model_copy(
            update={
                "tensor": self.tensor,
                "pipeline": self.pipeline,
                "sequence_parallel": self.sequence_parallel,
                "activation_checkpointing": self.activation_checkpointing,
            }
        )
        return config.model_copy(update={"deepspeed": block, "parallel": parallel})

    def overrides(self, config: RunConfig) -> list[str]:
        """The ``--set`` options that turn the recipe into this layout; only what it does not say already."""
        block, parallel = config.deepspeed, config.parallel
        wanted = {
            "parallel.tensor": (parallel.tensor, self.tensor),
            "parallel.pipeline": (parallel.pipeline, self.pipeline),
            "parallel.sequence_parallel": (parallel.sequence_parallel, self.sequence_parallel),
            "parallel.activation_checkpointing": (parallel.activation_checkpointing, self.activation_checkpointing),
            "deepspeed.zero_optimization.stage": (zero_stage(block), self.zero_stage),
            "deepspeed.train_micro_batch_size_per_gpu": (
                block.get("train_micro_batch_size_per_gpu"),
                self.micro_batch,
            ),
        }
        given = block.get("gradient_accumulation_steps")
        if given is not None:
            wanted["deepspeed.gradient_accumulation_steps"] = (given, self.accumulation)
        changed = [f"{key}={_json(value)}" for key, (now, value) in wanted.items() if now != value]
        for section, values in _pipeline_block(self).items():
            now = block.get(section, {})
            changed += [f"deepspeed.{section}.{k}={_json(v)}" for k, v in values.items() if now.get(k) != v]
        return changed


def _pipeline_block(layout: Layout) -> dict[str, dict[str, bool]]:
    """What DeepSpeed must be told where tensor parallelism meets a pipeline (see preflight/layout.py)."""
    if layout.pipeline == 1 or layout.tensor == 1:
        return {}
    return {"pipeline": {"pipe_partitioned": False, "grad_partitioned": False}}


def _json(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
