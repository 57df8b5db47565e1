"""A layout of a recipe: the numbers that decide what one rank holds and sends."""

from dataclasses import dataclass, replace

from megadeberta.config.deepspeed_block import BatchAlgebra
from megadeberta.config.run import RunConfig
from megadeberta.layers.micro_batch import MicroBatch
from megadeberta.layers.recipe import micro_batch_of
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
            zero_stage=config.engine.zero_stage,
            micro_batch=algebra.micro_batch,
            accumulation=algebra.accumulation,
            sequence_parallel=config.parallel.sequence_parallel and topology.tensor > 1,
            activation_checkpointing=config.parallel.activation_checkpointing,
        )

    def micro_batch_of(self, config: RunConfig, *, attention: str = "reference") -> MicroBatch:
        """One micro batch of a recipe under this layout, as one rank sees it."""
        return replace(
            micro_batch_of(config, attention=attention),
            sequences=self.micro_batch,
            tensor=self.tensor,
            sequence_parallel=self.sequence_parallel,
            activation_checkpointing=self.activation_checkpointing,
        )

    @property
    def topology(self) -> Topology:
        """Which rank does what."""
        return Topology(self.pipeline, self.data, self.tensor)

    @property
    def world_size(self) -> int:
        """Ranks of the job."""
        return self.tensor * self.pipeline * self.data

    @property
    def global_batch(self) -> int:
        """Sequences per optimizer step."""
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
        parallel, block = (
            {name: value for name, (_, value) in settings.items()}
            for settings in (self._parallel(config), self._deepspeed(config))
        )
        return config.with_deepspeed(block).model_copy(update={"parallel": config.parallel.model_copy(update=parallel)})

    def overrides(self, config: RunConfig) -> list[str]:
        """The ``--set`` options that turn the recipe into this layout; only what it does not say already."""
        sections = {"parallel": self._parallel(config), "deepspeed": self._deepspeed(config)}
        return [
            f"{section}.{name}={_json(value)}"
            for section, settings in sections.items()
            for name, (now, value) in settings.items()
            if now != value
        ]

    def _parallel(self, config: RunConfig) -> dict[str, tuple[object, object]]:
        """The settings of the parallel section: as the recipe has them, and as the layout wants them."""
        names = ("tensor", "pipeline", "sequence_parallel", "activation_checkpointing")
        return {name: (getattr(config.parallel, name), getattr(self, name)) for name in names}

    def _deepspeed(self, config: RunConfig) -> dict[str, tuple[object, object]]:
        """The same of the deepspeed block, by dotted key."""
        settings = config.engine
        wanted: dict[str, tuple[object, object]] = {
            "zero_optimization.stage": (settings.zero_stage, self.zero_stage),
            "train_micro_batch_size_per_gpu": (settings.micro_batch, self.micro_batch),
        }
        if settings.accumulation is not None:  # else it is derived
            wanted["gradient_accumulation_steps"] = (settings.accumulation, self.accumulation)
        if self.pipeline > 1 and self.tensor > 1:  # see preflight/layout.py
            wanted["pipeline.pipe_partitioned"] = (settings.partitions_activations, False)
            wanted["pipeline.grad_partitioned"] = (settings.partitions_gradients, False)
        return wanted


def _json(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
