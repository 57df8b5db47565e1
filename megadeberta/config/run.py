"""One run: the whole recipe."""

from collections.abc import Mapping
from typing import Any

from pydantic import Field, JsonValue

from megadeberta.config.batches import BatchSizes
from megadeberta.config.data import DataConfig
from megadeberta.config.deepspeed_block import KNOWN_KEYS, OURS, EngineSettings, with_values
from megadeberta.config.deepspeed_defaults import missing_values
from megadeberta.config.model import ModelConfig
from megadeberta.config.objective import ObjectiveConfig
from megadeberta.config.section import Section
from megadeberta.config.training import (
    CheckpointConfig,
    LoggingConfig,
    NumericsConfig,
    OptimizerConfig,
    ParallelConfig,
    ScheduleConfig,
    SupervisionConfig,
    TrainingConfig,
)


class RunConfig(Section):
    """A recipe of ds_configs/ after ``extends`` and overrides. Components receive their own section, never this."""

    name: str = Field(pattern=r"^[A-Za-z0-9_.-]+$", description="of the run, in logs and plots")
    description: str = Field("", description="for people; the first sentence is shown; not inherited")
    plugins: tuple[str, ...] = Field(
        (), description="Python modules that are imported first: they register objectives or attention backends"
    )
    model: ModelConfig
    data: DataConfig
    objective: ObjectiveConfig = ObjectiveConfig()
    optimizer: OptimizerConfig
    schedule: ScheduleConfig = ScheduleConfig()
    training: TrainingConfig
    checkpoint: CheckpointConfig = CheckpointConfig()
    logging: LoggingConfig = LoggingConfig()
    parallel: ParallelConfig = ParallelConfig()
    supervision: SupervisionConfig = SupervisionConfig()
    numerics: NumericsConfig = NumericsConfig()
    deepspeed: dict[str, Any] = Field(
        description="DeepSpeed's own settings: batch sizes, precision, ZeRO, clipping; what depends on the layout is "
        "filled in",
        json_schema_extra={"propertyNames": {"enum": list[JsonValue](sorted(KNOWN_KEYS - OURS.keys()))}},
    )

    @property
    def engine(self) -> EngineSettings:
        """What this project knows of the deepspeed block. Not cached: ``model_copy`` would keep what was read here."""
        return EngineSettings.of(self.deepspeed)

    @property
    def batches(self) -> BatchSizes:
        """The global batch of every step."""
        return BatchSizes(self.training.batch_stages, self.engine.global_batch)

    def with_deepspeed(self, values: Mapping[str, Any]) -> "RunConfig":
        """The recipe with other values in its deepspeed block, by dotted key: ``{"zero_optimization.stage": 2}``."""
        return self.model_copy(update={"deepspeed": with_values(self.deepspeed, values)})

    def completed(self, *, parameters: int, data_parallel: int) -> "RunConfig":
        """The recipe with what it leaves to us in its deepspeed block (``missing_values``); twice is as once.

        Args:
            parameters: of one rank, before ZeRO partitions them; about is enough.
        """
        pipeline = self.parallel.pipeline
        return self.with_deepspeed(
            missing_values(self.deepspeed, parameters=parameters, data_parallel=data_parallel, pipeline=pipeline)
        )
