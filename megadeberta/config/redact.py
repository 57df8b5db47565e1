"""Keep secrets out of logs, argument lists and stored settings."""

import json
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pydantic import BaseModel

HIDDEN = "***"
_SECRET_NAME = re.compile(r"TOKEN(?!IZ)|KEY|SECRET|PASSW|CREDENTIAL|^AWS_", re.IGNORECASE)
_URL_CREDENTIALS = re.compile(r"(\w://)[^/@\s]+@")


def is_secret_name(name: str) -> bool:
    """Whether a variable of this name may hold a secret: HF_TOKEN, WANDB_API_KEY, AWS_SECRET_ACCESS_KEY ..."""
    return _SECRET_NAME.search(name) is not None


def redact(values: Mapping[str, Any]) -> dict[str, Any]:
    """A copy for showing: texts under secret names and credentials in addresses become ``***``, at every depth.

    Numbers and booleans stay, whatever their name: ``model.key_bias`` is not a secret.
    """
    return {name: _redact_value(value, secret=is_secret_name(name)) for name, value in values.items()}


def recipe_json(recipe: "BaseModel") -> str:
    """A resolved recipe without secrets, as it is shown and stored."""
    return json.dumps(redact(recipe.model_dump(mode="json")), indent=2)


def _redact_value(value: Any, *, secret: bool) -> Any:
    if isinstance(value, Mapping):
        return {name: _redact_value(inner, secret=secret or is_secret_name(name)) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_redact_value(inner, secret=secret) for inner in value)
    if isinstance(value, str):
        return HIDDEN if secret and value else _URL_CREDENTIALS.sub(rf"\1{HIDDEN}@", value)
    return value
