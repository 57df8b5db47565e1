"""The base of every configuration section."""

from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel, ConfigDict, ValidationInfo, field_validator
from pydantic_core import PydanticCustomError

from megadeberta.config.shell import begins_for_shell


class Section(BaseModel):
    """Frozen, strict about unknown keys, with finite numbers only, no switch for a number, and without empty paths."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, protected_namespaces=())

    @field_validator("*", mode="before")
    @classmethod
    def _path_is_one(cls, value: Any, info: ValidationInfo) -> Any:
        """An empty text would be the working folder, and ``~`` a folder of that name."""
        name = info.field_name
        if not name or not isinstance(value, str) or not _takes(Path, cls.model_fields[name].annotation):
            return value
        if not value:
            raise ValueError(f"{name} is an empty path; name a file or folder, . is the working folder")
        if begins_for_shell(value):
            raise ValueError(f"{name}={value}: {value.partition('/')[0]} is for a shell; write the whole path")
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
