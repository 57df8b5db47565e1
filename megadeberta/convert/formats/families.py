"""The model families that weights are exchanged with, and which of them a model or a folder belongs to."""

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from megadeberta.config.model import ModelConfig
from megadeberta.convert.formats.config_json import from_config_json
from megadeberta.convert.formats.deberta_v1 import DebertaV1
from megadeberta.convert.formats.deberta_v2 import DebertaV2
from megadeberta.convert.formats.family import ExportTarget, Family, FileFormat, ModelKind
from megadeberta.convert.formats.names import MLM_HEAD
from megadeberta.convert.formats.places import config_path, read_config
from megadeberta.errors import CheckpointError, ConfigError
from megadeberta.weights.place import weights_path
from megadeberta.weights.safetensors_file import tensor_names

FAMILIES: list[Family] = [DebertaV1(), DebertaV2()]
"""The first that supports a model gets its export, so special families stand before general ones."""


def register_family(family: Family) -> None:
    """Add a family from outside this package, ahead of the others.

    Raises:
        ConfigError: there is one of this ``model_type``.
    """
    if any(known.model_type == family.model_type for known in FAMILIES):
        raise ConfigError(f"a family of model_type={family.model_type!r} is registered already; remove one of the two")
    FAMILIES.insert(0, family)


def choose_target(
    config: ModelConfig, kind: ModelKind, file_format: FileFormat = FileFormat.HUGGING_FACE
) -> ExportTarget:
    """The export of a model: of the first family that supports it.

    Raises:
        CheckpointError: none does.
    """
    reasons = []
    for family in FAMILIES:
        reason = family.supports(config)
        if reason is None:
            return ExportTarget(family, kind, file_format)
        reasons.append(f"{family.model_type}: {reason}")
    raise CheckpointError(f"no model family of transformers can express this model ({'; '.join(reasons)})")


def family_of(values: Mapping[str, Any], tensor_names: Collection[str], source: str) -> Family:
    """The family of a folder, by its ``config.json``; of microsoft/DeBERTa's, which gives no ``model_type``, by its
    tensors.

    Args:
        source: the file of ``values``, for errors.

    Raises:
        CheckpointError: a model of no family here.
    """
    model_type = values.get("model_type")
    for family in FAMILIES:
        if family.model_type == model_type or (model_type is None and family.recognizes(tensor_names)):
            return family
    raise _unknown_family(model_type, source)


def check_family(place: Path) -> ModelConfig | None:
    """Refuse a model that cannot be read by its ``config.json`` alone, before its weights are.

    Returns:
        The model without a mask decoder, of which only the weights say more; None where they also decide the family.

    Raises:
        CheckpointError: there is no configuration, or it is another model's, or one with settings that ours lack.
    """
    path = config_path(place)
    values = read_config(path)
    model_type = values.get("model_type")
    if model_type is None:
        return None  # its tensors decide
    family = next((family for family in FAMILIES if family.model_type == model_type), None)
    if family is None:
        raise _unknown_family(model_type, str(path))
    return from_config_json(values, family, mask_decoder=False, source=str(path))


def lacks_token_head(place: Path) -> bool:
    """Whether weights have no head that predicts tokens, as far as the names of their tensors tell without torch."""
    names = tensor_names(weights_path(place))
    heads = [head for family in FAMILIES for head in family.mlm_heads]
    return names is not None and not any(name in names for head in heads for name in head.values())


def check_predicts(place: Path) -> None:
    """Refuse weights that cannot predict tokens.

    Raises:
        CheckpointError: they lack the head.
    """
    if lacks_token_head(place):
        raise without_head(place, min(MLM_HEAD))


def without_head(place: Path, missing: str) -> CheckpointError:
    """What to tell who asks weights for tokens that they cannot predict."""
    return CheckpointError(
        f"{place}: has no {missing}, without which nothing can be predicted; export with --model mlm "
        "or, of a run with two parts, --model generator"
    )


def _unknown_family(model_type: object, source: str) -> CheckpointError:
    known = " and ".join(f"{family.model_type!r} ({family.versions})" for family in FAMILIES)
    return CheckpointError(f"{source}: model_type is {model_type!r}; only {known} can be imported")
