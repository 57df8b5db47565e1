"""One of several pairs of texts is right: each gets a number, and the largest wins.

Shapes: B batch · C choices · L length.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import DataCollatorWithPadding

from megadeberta.errors import DataError
from megadeberta.finetune.kinds.kind import Feature, Outputs, probabilities
from megadeberta.finetune.rows import ChoiceRow, Prediction


class Choices:
    """The number of the right choice per row. All rows have as many choices."""

    model_class = "AutoModelForMultipleChoice"
    label_names: tuple[str, ...] = ("labels",)
    dropout_setting: str | None = "cls_dropout"

    def config(self, labels: Sequence[str]) -> dict[str, Any]:
        return {"num_labels": 1}

    def encode(self, rows: Sequence[ChoiceRow], tokenizer: Any, *, labels: Sequence[str], length: int) -> list[Feature]:
        counts = {len(row.choices) for row in rows}
        if len(counts) > 1:
            raise DataError(f"rows have {min(counts)} to {max(counts)} choices; give all of them as many")
        features = []
        for row in rows:
            firsts, seconds = [first for first, _ in row.choices], [second for _, second in row.choices]
            encoded = tokenizer(firsts, seconds, truncation="only_first", max_length=length)
            features.append(dict(encoded) | ({} if row.label is None else {"labels": row.label}))
        return features

    def collate(self, tokenizer: Any) -> Callable[[Sequence[Feature]], dict[str, Tensor]]:
        # transformers' DataCollatorForMultipleChoice takes no rows without labels.
        pad = DataCollatorWithPadding(tokenizer)

        def collate(features: Sequence[Feature]) -> dict[str, Tensor]:
            inputs = [name for name in features[0] if name != "labels"]
            count = len(features[0]["input_ids"])
            flat = [{name: feature[name][place] for name in inputs} for feature in features for place in range(count)]
            batch = {name: values.view(len(features), count, -1) for name, values in pad(flat).items()}  # [B, C, L]
            if "labels" in features[0]:
                batch["labels"] = torch.tensor([feature["labels"] for feature in features])
            return batch

        return collate

    def logits(self, outputs: Any, batch: Mapping[str, Tensor]) -> Tensor:
        logits: Tensor = outputs["logits"]
        return logits

    def real(self, batch: Mapping[str, Tensor]) -> Tensor | None:
        return None

    def decode(
        self, outputs: Outputs, features: Sequence[Feature], rows: Sequence[ChoiceRow], *, labels: Sequence[str]
    ) -> list[Prediction]:
        return [Prediction(int(row.argmax()), tuple(map(float, row))) for row in probabilities(outputs)]
