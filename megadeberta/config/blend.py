"""Several token files in one run: how a recipe names them, and how a checkpoint records what they were mixed by."""

from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, BeforeValidator, Field

from megadeberta.config.section import Section
from megadeberta.remote.address import keep_empty_host
from megadeberta.remote.path import as_path

DataPath = Annotated[Path, BeforeValidator(keep_empty_host), AfterValidator(as_path)]
"""A path of this machine, or an address that fsspec knows."""
SourceName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]*$")]
"""Without dots, which separate the keys of ``--set``, and without slashes, which separate the keys of metrics."""


class TrainSource(Section):
    """One token file of a blend. At most one of weight, epochs and tokens, and the same one for all sources."""

    prefix: DataPath = Field(
        description="shard prefix, made by `megadeberta prep` with the tokenizer of all the others"
    )
    weight: float | None = Field(None, gt=0, description="how much of it among the samples, relative to the others")
    epochs: float | None = Field(None, gt=0, description="budget: how often the run may meet each of its sequences")
    tokens: int | None = Field(None, gt=0, description="budget: how many of its tokens the run may meet")

    @property
    def setting(self) -> str | None:
        """Which of the three is given."""
        return next((name for name in ("weight", "epochs", "tokens") if getattr(self, name) is not None), None)


class BlendSource(Section):
    """A source as a checkpoint records it."""

    weight: int = Field(ge=1, description="its fraction of the samples times 2^40")
    asked: str = Field(description="what the recipe says, such as `weight 0.7`: another text is another blend")
    content: str = Field(description="of the token file's manifest")


class BlendSegment(Section):
    """The blend of the samples from ``first_sample`` on."""

    first_sample: int = Field(ge=0)
    sources: dict[str, BlendSource] = Field(min_length=1)
