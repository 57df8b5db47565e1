"""The base of every configuration section."""

from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel, ConfigDict, ValidationInfo, field_validator


class Section(BaseModel):
    """Frozen, strict about unknown keys, with finite numbers only and without empty paths."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, protected_namespaces=())

    @field_validator("*", mode="before")
    @classmethod
    def _path_is_not_empty(cls, value: Any, info: ValidationInfo) -> Any:
        """An empty text would be the working folder."""
        if value == "" and info.field_name and _takes_path(cls.model_fields[info.field_name].annotation):
            raise ValueError(f"{info.field_name} is an empty path; name a file or folder, . is the working folder")
        return value


def _takes_path(annotation: Any) -> bool:
    return annotation is Path or any(_takes_path(part) for part in get_args(annotation))
