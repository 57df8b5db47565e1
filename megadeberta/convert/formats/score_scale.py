"""What ``pos_att_type`` of a published configuration means to the code that wrote it, and by what it divides scores.

Our attention divides by ``sqrt(d s)``, where s is one more than the number of position terms it computes. Both other
code bases count names, also those that they compute nothing for: without relative attention, and in transformers' v1
names that are no terms. An import puts the quotient into the query projections, so that the outputs are equal.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, get_args

from megadeberta.config.model import ModelConfig, PositionTerm
from megadeberta.errors import CheckpointError

TERMS: tuple[str, ...] = get_args(PositionTerm)
NO_TERMS = "none"
"""As Microsoft's configurations say it; its code cannot read an absent or empty value as that."""
_MICROSOFT_DEFAULT = "c2p"
"""microsoft/DeBERTa ``disentangled_attention.py``; transformers' default is no name."""
_QUERIES = ("query_proj.weight", "query_proj.bias")
"""Of content and of positions: one of the two is a factor of every term."""

WHY_SCALED = "its code counts names in pos_att_type that it computes nothing for"


def is_of_microsoft(values: Mapping[str, Any]) -> bool:
    """Whether a configuration is microsoft/DeBERTa's own: those have no ``model_type``."""
    return values.get("model_type") is None


def position_names(values: Mapping[str, Any], source: str) -> list[str]:
    """The names of ``pos_att_type`` as the code that the configuration is for has them after reading it.

    A string is split, stripped and put in small letters by both; transformers takes a list as it is.

    Raises:
        CheckpointError: a name that is neither a term of ours nor the absence of one.
    """
    names = values.get("pos_att_type")
    if names is None:
        names = _MICROSOFT_DEFAULT if is_of_microsoft(values) else []
    if isinstance(names, str):
        names = [name.strip() for name in names.lower().split("|")]
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise CheckpointError(f"{source}: pos_att_type is {names!r}; expected names such as 'c2p|p2c', or a list")
    known = {*TERMS, NO_TERMS, ""}
    if unknown := [name for name in names if name.strip().lower() not in known]:
        raise CheckpointError(
            f"{source}: not a model that megadeberta has: pos_att_type names {unknown[0]!r}, not {' or '.join(TERMS)}"
        )
    return names


def position_terms(names: Sequence[str]) -> tuple[str, ...]:
    """The terms that the names switch on, each once."""
    return tuple(dict.fromkeys(name for name in names if name in TERMS))


def query_factor(config: ModelConfig, counted: int) -> float:
    """What the query projections of a file must be multiplied with.

    Args:
        counted: names that the file's own code counts in its scale.
    """
    computed = len(config.pos_att_type) if config.relative_attention else 0
    return math.sqrt((1 + computed) / (1 + counted))


def is_query(name: str) -> bool:
    """Whether a tensor of ours projects queries, of content or of positions."""
    return name.endswith(_QUERIES)
