"""The base of every layer of the catalogue: what a layer has to say about itself.

A kind of layer is a subclass, ``class MlmHead(Layer, kind="mlm_head")``; defining it enters it in ``KINDS``. The torch
module behind a kind is in ``model/whole.py``. Nothing here imports torch.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar, Literal

from megadeberta.config.model import ModelConfig
from megadeberta.config.objective import part_of
from megadeberta.layers.collectives import Collective
from megadeberta.layers.micro_batch import MicroBatch
from megadeberta.layers.parameters import Shapes
from megadeberta.layers.terms import term

Cut = Literal["column", "row", "vocabulary"]
"""How tensor parallelism divides a parameter. column: by the outputs of a linear layer, dim 0 of its weight and its
bias. row: by its inputs, dim 1 of its weight; the bias stays whole. vocabulary: dim 0, in shards that may differ by one
unit of rows."""

FORWARD_OPERATIONS, TRAINING_OPERATIONS = 2, 6
"""Floating-point operations per multiply-add of the forward pass: forward alone; forward and backward."""


@dataclass(frozen=True)
class Tie:
    """A parameter that two layers share: ``attribute`` of the later layer is the parameter named ``source``."""

    attribute: str
    source: str


@dataclass(frozen=True)
class Layer:
    """One layer of a model.

    Subclasses override what does not hold for them. Sizes are those of one micro batch on one rank, in bytes.
    """

    name: str
    """Global name: the prefix of its parameters' names under every layout."""
    model: ModelConfig
    """Shape of the model that it belongs to: generator and discriminator differ."""
    ties: tuple[Tie, ...] = field(default=(), kw_only=True)
    """Parameters of earlier layers that it shares."""
    relative: str | None = field(default=None, kw_only=True)
    """Name of the relative table that it reads."""
    terms: tuple[str, ...] = field(default=(), kw_only=True)
    """Names of the (sum, count) terms that it adds, in order; see ``terms.py``."""

    kind: ClassVar[str]
    is_encoder: ClassVar[bool] = False
    """Runs under activation checkpointing: only its input is kept."""
    is_head: ClassVar[bool] = False
    """Comes behind the encoder: not part of what fine-tuning uses."""
    is_copied: ClassVar[bool] = False
    """Cheap and read by many: every pipeline stage that needs it holds a copy."""
    joins_previous: ClassVar[bool] = False
    """No pipeline cut may be made before it: what it reads is too large to travel."""
    writes: ClassVar[tuple[str, ...]] = ("hidden",)
    """The activations that it makes for later layers: fields of ``Carry``."""
    adds: ClassVar[tuple[str, ...]] = ()
    """Fields of the batch that it makes for later layers."""
    drops: ClassVar[tuple[str, ...]] = ()
    """Fields of the batch that no later layer reads."""
    cuts: ClassVar[Mapping[str, Cut]] = {}
    """How tensor parallelism divides its parameters, by the end of their names; what is not listed is whole."""

    def __init_subclass__(cls, *, kind: str | None = None) -> None:
        super().__init_subclass__()
        if kind is not None:
            known = KINDS.setdefault(kind, cls)
            if known.__qualname__ != cls.__qualname__:
                raise ValueError(f"two kinds of layers are called {kind!r}: {known.__qualname__}, {cls.__qualname__}")
            cls.kind = kind
            KINDS[kind] = cls

    def __post_init__(self) -> None:
        for name in self.terms:
            term(name)

    @property
    def part(self) -> str:
        """Generator, discriminator, or "" where the model has no parts."""
        return part_of(self.name)

    @property
    def reads(self) -> tuple[str, ...]:
        """The activations of earlier layers that it reads: fields of ``Carry``."""
        return ("hidden",)

    @property
    def tied(self) -> tuple[str, ...]:
        """Global names of the parameters of other layers that it shares."""
        return tuple(tie.source for tie in self.ties)

    def own_parameters(self) -> Shapes:
        """Shapes of its parameters by their names inside the layer, in the order of the torch module; no tied ones."""
        return {}

    def multiply_adds(self, batch: MicroBatch, *, rows: float) -> float:
        """Matrix products of the forward pass that grow with the batch: what a training token needs.

        Args:
            rows: target rows of the batch that are computed; ``batch.rows`` with the empty ones.
        """
        return 0.0

    def table_multiply_adds(self, batch: MicroBatch) -> float:
        """Matrix products of the forward pass that all sequences of a micro batch share."""
        return 0.0

    def repeated_multiply_adds(self, batch: MicroBatch) -> float:
        """Matrix products of the forward pass that are computed again although the result was there."""
        return 0.0

    def extra_operations(self, batch: MicroBatch) -> float:
        """Operations of training besides the products of a forward pass and their gradients."""
        return 0.0

    def operations(self, batch: MicroBatch) -> float:
        """Floating-point operations that training executes, of all tensor-parallel ranks together.

        Counted are matrix products, forward and backward, and ``extra_operations``. Not counted are normalisation,
        look-ups and dropout, which are about in proportion to the rest, and the optimizer, which runs once per step.
        """
        passes = TRAINING_OPERATIONS
        if batch.activation_checkpointing and self.is_encoder:
            passes += FORWARD_OPERATIONS
        products = self.multiply_adds(batch, rows=batch.rows) + self.table_multiply_adds(batch)
        return passes * (products + self.repeated_multiply_adds(batch)) + self.extra_operations(batch)

    def whole_multiply_adds(self, batch: MicroBatch) -> float:
        """Those of ``multiply_adds`` that every tensor-parallel rank computes whole: all, if nothing is cut."""
        return 0.0 if self.cuts else self.multiply_adds(batch, rows=batch.rows)

    def rank_operations(self, batch: MicroBatch) -> float:
        """``operations`` of one of ``batch.tensor`` ranks, which repeat ``whole_multiply_adds``."""
        repeats = self.is_encoder and batch.activation_checkpointing
        passes = TRAINING_OPERATIONS + (FORWARD_OPERATIONS if repeats else 0)
        repeated = passes * self.whole_multiply_adds(batch) * (batch.tensor - 1)
        return (self.operations(batch) + repeated) / batch.tensor

    def kept_bytes(self, batch: MicroBatch) -> int:
        """What autograd keeps for the backward pass, without logits over the vocabulary."""
        return 0

    def checkpointed_bytes(self, batch: MicroBatch) -> int:
        """The same under activation checkpointing."""
        return self.kept_bytes(batch)

    def kept_logits(self, batch: MicroBatch) -> int:
        """What of the logits over the vocabulary is kept."""
        return 0

    def peak_logits(self, batch: MicroBatch) -> int:
        """Most bytes of logits over the vocabulary at one time in the forward pass."""
        return 0

    def collectives(self, batch: MicroBatch) -> list[Collective]:
        """What the tensor-parallel ranks send for it in one micro batch of training, in no order."""
        return []


KINDS: dict[str, type[Layer]] = {}
"""Every kind of layer by its name."""
