"""The shape of a model for longer sequences, without torch: a recipe is checked before weights are read."""

from megadeberta.config.model import ModelConfig


def longer_model(config: ModelConfig, length: int) -> ModelConfig:
    """The model for sequences of ``length``: every distance keeps its row of the relative table.

    The span that log buckets are made for stays, and what is farther shares the outermost rows.
    """
    values = config.model_dump() | {"max_relative_positions": config.relative_span}
    values["max_position_embeddings"] = max(length, config.max_position_embeddings)
    return ModelConfig.model_validate(values)
