"""What a model family of transformers is to this package: one class that knows its names, packing and configuration.

Everything else in ``convert/`` asks the family and never which family it is. A new one is a subclass of ``Family`` in a
file of its own and an entry of ``families.FAMILIES`` (docs/extending.md).

The backbone's tensors go to and come from a family under *v2 names*: those of transformers' ``DebertaV2Model``, which
``names.py`` maps to ours. The family renames and packs them.
"""

import importlib
from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from importlib.resources import files
from typing import TYPE_CHECKING, Any, ClassVar

from megadeberta.config.model import ModelConfig
from megadeberta.convert.formats.names import BACKBONE_PREFIX, LEGACY_MLM_HEAD, MISSPELT_RTD_HEAD, MLM_HEAD, RTD_HEAD
from megadeberta.convert.formats.score_scale import position_terms

if TYPE_CHECKING:
    from torch import Tensor


class ModelKind(StrEnum):
    """What is asked of an export. What it then holds is one of the other three: a generator is ``MLM``."""

    MLM = "mlm"
    BACKBONE = "backbone"
    DISCRIMINATOR = "discriminator"
    GENERATOR = "generator"


class FileFormat(StrEnum):
    """Whose program the folder is for; both read the same tensor names."""

    HUGGING_FACE = "hf"
    MICROSOFT = "microsoft"


@dataclass(frozen=True)
class OptIn:
    """A module that exports carry: a family's class of transformers, extended by the enhanced mask decoder.

    Exports hold a copy of its file, so it imports nothing of ours.
    """

    module: str
    class_name: str

    @property
    def file_name(self) -> str:
        return f"{self.module.rpartition('.')[2]}.py"

    def source(self) -> bytes:
        """The file that exports carry."""
        return (files(self.module.rpartition(".")[0]) / self.file_name).read_bytes()

    def auto_map(self) -> dict[str, str]:
        """For ``config.json``: what a user who trusts the folder's code (``trust_remote_code=True``) gets."""
        return {"AutoModelForMaskedLM": f"{self.file_name.removesuffix('.py')}.{self.class_name}"}

    def load_class(self) -> Any:
        """The class, out of this package and never out of an export. Loads transformers."""
        return getattr(importlib.import_module(self.module), self.class_name)


class Family(ABC):
    """One model family. Defaults are what DeBERTa v1, v2 and v3 have in common."""

    model_type: ClassVar[str]
    """Of ``config.json``; transformers chooses its classes by it."""
    versions: ClassVar[str]
    """What people call these models: "v1", "v2 and v3"."""
    class_prefix: ClassVar[str]
    """transformers' classes are this and ``Model`` or ``ForMaskedLM``."""
    prefixes: ClassVar[tuple[str, ...]] = (BACKBONE_PREFIX, "bert.", "")
    """Ahead of the backbone's names in a file with a head: the first is written, all are read."""
    mlm_heads: ClassVar[tuple[Mapping[str, str], ...]] = (MLM_HEAD, LEGACY_MLM_HEAD)
    """Our names -> the file's, in every spelling that is read. Reports name the first."""
    rtd_heads: ClassVar[tuple[Mapping[str, str], ...]] = (RTD_HEAD, MISSPELT_RTD_HEAD)
    """As ``mlm_heads``; the first is written."""
    config_fields: ClassVar[tuple[str, ...]] = ()
    """Fields of ``ModelConfig`` that this family's ``config.json`` has beside those of every family."""
    key_bias: ClassVar[bool] = True
    """Whether the keys have biases where ``config.json`` does not say."""
    newly_drawn: ClassVar[tuple[str, ...]] = ()
    """Prefixes of tensors that transformers' encoder has and no model of ours, so that no export holds them."""
    has_fast_attention: ClassVar[bool] = False
    """Whether ``megadeberta.hf.use_fast_attention`` takes its classes; model cards then say so."""
    opt_in: ClassVar[OptIn | None] = None
    """None: transformers' class cannot be extended by the enhanced mask decoder."""

    @abstractmethod
    def supports(self, config: ModelConfig) -> str | None:
        """Why this family cannot express a model of this configuration, or None if it can."""

    def recognizes(self, tensor_names: Collection[str]) -> bool:
        """Whether a file of microsoft/DeBERTa is of this family: its configurations have no ``model_type``."""
        return False

    def architecture(self, kind: ModelKind) -> str:
        """The class of transformers that ``config.json`` names."""
        return f"{self.class_prefix}{'ForMaskedLM' if kind == ModelKind.MLM else 'Model'}"

    def written_mlm_head(self, config: ModelConfig, file_format: FileFormat) -> Mapping[str, str]:
        """The spelling of ``mlm_heads`` that an export has.

        transformers builds the one of ``legacy: false`` as ``H -> H``, so an embedding width of its own needs the
        legacy one.
        """
        is_narrow = config.embedding_width != config.hidden_size
        return LEGACY_MLM_HEAD if is_narrow and file_format == FileFormat.HUGGING_FACE else MLM_HEAD

    def own_config(self, config: ModelConfig) -> dict[str, Any]:
        """What ``config.json`` has beside the keys of every family."""
        return {name: getattr(config, name) for name in self.config_fields}

    def pack(self, backbone: "dict[str, Tensor]", config: ModelConfig) -> "dict[str, Tensor]":
        """Backbone tensors by v2 names -> as this family stores them, without prefix."""
        return backbone

    def unpack(self, backbone: "dict[str, Tensor]", config: ModelConfig) -> "dict[str, Tensor]":
        """The inverse of ``pack``.

        Raises:
            CheckpointError: a packed tensor of another shape.
        """
        return backbone

    def counted_terms(self, names: Sequence[str]) -> int:
        """How many of the names of ``pos_att_type`` transformers' class of this family counts in its scale."""
        return len(position_terms(names))

    def stored_name(self, name: str) -> str:
        """Where this family stores the backbone tensor of this v2 name."""
        return name

    def why_superfluous(self, name: str, tensor: "Tensor", config: ModelConfig) -> str | None:
        """The reason if a file's tensor, by its v2 name, may be dropped although the model has no place for it."""
        return None


@dataclass(frozen=True)
class ExportTarget:
    """What an export holds, of which family, and for whose program."""

    family: Family
    kind: ModelKind
    file_format: FileFormat = FileFormat.HUGGING_FACE

    def carried(self, config: ModelConfig) -> OptIn | None:
        """The module that the export holds beside its weights, if any."""
        is_for_transformers = self.kind == ModelKind.MLM and self.file_format == FileFormat.HUGGING_FACE
        return self.family.opt_in if is_for_transformers and config.enhanced_mask_decoder else None
