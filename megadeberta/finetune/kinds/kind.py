"""What a kind of task says of itself.

Shapes: B batch · L length · C classes or choices.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
from torch import Tensor

from megadeberta.finetune.rows import Prediction

Feature = dict[str, Any]
"""One sequence as lists of numbers, and what ``decode`` needs to know of it under names that begin with "_"."""
Outputs = Any
"""An array ``[rows, ...]`` of the model's outputs, or several of them."""


class Kind(Protocol):
    """One entry of ``KINDS``."""

    model_class: str
    """Name of transformers' class."""
    label_names: tuple[str, ...]
    """Fields of a batch that hold what is to be learned."""
    dropout_setting: str | None
    """Field of transformers' configuration with the dropout before the classifier; None: the head has none."""

    def config(self, labels: Sequence[str]) -> dict[str, Any]:
        """Fields of transformers' configuration."""

    def encode(self, rows: Sequence[Any], tokenizer: Any, *, labels: Sequence[str], length: int) -> list[Feature]:
        """The sequences of the rows, in order."""

    def collate(self, tokenizer: Any) -> Callable[[Sequence[Feature]], dict[str, Tensor]]:
        """From sequences to a padded batch of tensors."""

    def logits(self, outputs: Any, batch: Mapping[str, Tensor]) -> Tensor:
        """What SiFT compares, ``[B, ..., C]``: outputs whose softmax is the prediction, or numbers."""

    def real(self, batch: Mapping[str, Tensor]) -> Tensor | None:
        """Which predictions of ``logits`` count, ``[B, ...]``; None: all."""

    def decode(
        self, outputs: Outputs, features: Sequence[Feature], rows: Sequence[Any], *, labels: Sequence[str]
    ) -> list[Prediction]:
        """One prediction for each row."""


def without_notes(features: Sequence[Feature]) -> list[Feature]:
    """The features without what is only for ``decode``."""
    return [{name: value for name, value in feature.items() if not name.startswith("_")} for feature in features]


def probabilities(logits: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    """Softmax over the last axis, in float64."""
    values = np.asarray(logits, np.float64)
    values = np.exp(values - values.max(-1, keepdims=True))
    result: npt.NDArray[np.float64] = values / values.sum(-1, keepdims=True)
    return result
