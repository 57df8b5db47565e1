"""Each word of a sentence gets a tag, at its first token.

Sentences longer than a sequence are cut into several, each of which begins with a word of its own.

Shapes: B batch · L length · C tags.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from torch import Tensor
from transformers import DataCollatorForTokenClassification

from megadeberta.finetune.kinds.kind import Feature, Outputs, without_notes
from megadeberta.finetune.rows import Prediction, TokenRow

_IGNORED = -100
"""The target that torch's cross entropy leaves out."""


class Tokens:
    """A tag per word."""

    model_class = "AutoModelForTokenClassification"
    label_names: tuple[str, ...] = ("labels",)
    dropout_setting: str | None = None

    def config(self, labels: Sequence[str]) -> dict[str, Any]:
        return {
            "id2label": dict(enumerate(labels)),
            "label2id": {label: number for number, label in enumerate(labels)},
        }

    def encode(self, rows: Sequence[TokenRow], tokenizer: Any, *, labels: Sequence[str], length: int) -> list[Feature]:
        return [
            feature
            for number, row in enumerate(rows)
            for feature in self._of_row(number, row, tokenizer, labels=labels, length=length)
        ]

    def _of_row(
        self, number: int, row: TokenRow, tokenizer: Any, *, labels: Sequence[str], length: int
    ) -> Iterator[Feature]:
        # Word by word: what a space before or behind a word means differs between the kinds of vocabularies.
        words = [tokenizer(f" {word}", add_special_tokens=False)["input_ids"] for word in row.words]
        words = [(ids or [tokenizer.unk_token_id])[: length - 2] for ids in words]
        start = 0
        while start < len(words):
            stop, used = start, 2
            while stop < len(words) and used + len(words[stop]) <= length:
                used += len(words[stop])
                stop += 1
            yield self._sequence(number, row, words, range(start, stop), tokenizer, labels)
            start = stop

    def _sequence(
        self,
        number: int,
        row: TokenRow,
        words: Sequence[list[int]],
        chosen: range,
        tokenizer: Any,
        labels: Sequence[str],
    ) -> Feature:
        ids, targets, places = [tokenizer.cls_token_id], [_IGNORED], []
        for place in chosen:
            places.append(len(ids))
            ids += words[place]
            target = labels.index(row.tags[place]) if row.tags is not None else _IGNORED
            targets += [target] + [_IGNORED] * (len(words[place]) - 1)
        ids.append(tokenizer.sep_token_id)
        feature: Feature = {"input_ids": ids, "attention_mask": [1] * len(ids), "_row": number, "_places": places}
        return feature | ({"labels": [*targets, _IGNORED]} if row.tags is not None else {})

    def collate(self, tokenizer: Any) -> Callable[[Sequence[Feature]], dict[str, Tensor]]:
        pad = DataCollatorForTokenClassification(tokenizer)
        return lambda features: dict(pad(without_notes(features)))

    def logits(self, outputs: Any, batch: Mapping[str, Tensor]) -> Tensor:
        logits: Tensor = outputs["logits"]
        return logits

    def real(self, batch: Mapping[str, Tensor]) -> Tensor | None:
        return batch["labels"] != _IGNORED

    def decode(
        self, outputs: Outputs, features: Sequence[Feature], rows: Sequence[TokenRow], *, labels: Sequence[str]
    ) -> list[Prediction]:
        found: list[list[str]] = [[] for _ in rows]
        for feature, logits in zip(features, np.asarray(outputs), strict=True):
            found[feature["_row"]] += [labels[int(logits[place].argmax())] for place in feature["_places"]]
        return [Prediction(tuple(tags)) for tags in found]
