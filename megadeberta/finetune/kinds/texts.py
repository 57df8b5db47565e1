"""One text or a pair gets a label, or a number.

Shapes: B batch · C classes.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from torch import Tensor
from transformers import DataCollatorWithPadding

from megadeberta.finetune.kinds.kind import Feature, Outputs, probabilities, without_notes
from megadeberta.finetune.rows import Prediction, TextRow


class Classification:
    """A label per text."""

    model_class = "AutoModelForSequenceClassification"
    label_names: tuple[str, ...] = ("labels",)
    dropout_setting: str | None = "cls_dropout"

    def config(self, labels: Sequence[str]) -> dict[str, Any]:
        return {
            "id2label": dict(enumerate(labels)),
            "label2id": {label: number for number, label in enumerate(labels)},
            "problem_type": "single_label_classification",
        }

    def encode(self, rows: Sequence[TextRow], tokenizer: Any, *, labels: Sequence[str], length: int) -> list[Feature]:
        pairs = [row.pair for row in rows] if any(row.pair is not None for row in rows) else None
        if pairs is not None:
            pairs = ["" if pair is None else pair for pair in pairs]
        # The longer text of a pair gives way first, as in microsoft/DeBERTa.
        encoded = tokenizer([row.text for row in rows], pairs, truncation=True, max_length=length)
        return [
            {name: values[number] for name, values in encoded.items()} | self._target(row, labels)
            for number, row in enumerate(rows)
        ]

    def _target(self, row: TextRow, labels: Sequence[str]) -> Feature:
        return {} if row.label is None else {"labels": labels.index(str(row.label))}

    def collate(self, tokenizer: Any) -> Callable[[Sequence[Feature]], dict[str, Tensor]]:
        pad = DataCollatorWithPadding(tokenizer)
        return lambda features: dict(pad(without_notes(features)))

    def logits(self, outputs: Any, batch: Mapping[str, Tensor]) -> Tensor:
        logits: Tensor = outputs["logits"]
        return logits

    def real(self, batch: Mapping[str, Tensor]) -> Tensor | None:
        return None

    def decode(
        self, outputs: Outputs, features: Sequence[Feature], rows: Sequence[TextRow], *, labels: Sequence[str]
    ) -> list[Prediction]:
        return [Prediction(labels[int(row.argmax())], tuple(map(float, row))) for row in probabilities(outputs)]


class Regression(Classification):
    """A number per text: one output, by the mean squared error."""

    def config(self, labels: Sequence[str]) -> dict[str, Any]:
        return {"num_labels": 1, "problem_type": "regression"}

    def _target(self, row: TextRow, labels: Sequence[str]) -> Feature:
        return {} if row.label is None else {"labels": float(row.label)}

    def decode(
        self, outputs: Outputs, features: Sequence[Feature], rows: Sequence[TextRow], *, labels: Sequence[str]
    ) -> list[Prediction]:
        return [Prediction(float(value)) for value in np.asarray(outputs).reshape(-1)]
