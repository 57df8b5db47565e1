"""The base of every configuration section."""

from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel, ConfigDict, ValidationInfo, field_validator
from pydantic_core import PydanticCustomError


class Section(BaseModel):
    """Frozen, strict about unknown keys, with finite numbers only, no switch for a number, and without empty paths."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, protected_namespaces=())

    @field_validator("*", mode="before")
    @classmethod
    def _path_is_not_empty(cls, value: Any, info: ValidationInfo) -> Any:
        """An empty text would be the working folder."""
        if value == "" and info.field_name and _takes(Path, cls.model_fields[info.field_name].annotation):
            raise ValueError(f"{info.field_name} is an empty path; name a file or folder, . is the working folder")
        return value

    @field_validator("*", mode="before")
    @classmethod
    def _switch_is_no_number(cls, value: Any, info: ValidationInfo) -> Any:
        """pydantic takes true for 1."""
        if isinstance(value, bool) and info.field_name:
            annotation = cls.model_fields[info.field_name].annotation
            if (_takes(int, annotation) or _takes(float, annotation)) and not _takes(bool, annotation):
                raise PydanticCustomError("switch_for_number", "Input should be a number, and not true or false")
        return value


def _takes(kind: type, annotation: Any) -> bool:
    return annotation is kind or any(_takes(kind, part) for part in get_args(annotation))
