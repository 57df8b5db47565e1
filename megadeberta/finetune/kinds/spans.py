"""The answer to a question is a piece of the context, from its first to its last token, or is not there ([CLS]).

A context longer than a sequence is read in overlapping windows. The best span of all windows is the answer, unless
"no answer" scores higher in every window (Devlin et al. 2019, section 4.3; transformers' run_qa example).

Shapes: B batch · L length.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from transformers import DataCollatorWithPadding

from megadeberta.finetune.kinds.kind import Feature, Outputs, without_notes
from megadeberta.finetune.rows import Prediction, SpanRow

_OVERLAP = 128
"""Tokens that two windows share, at most a third of the length."""
_BEST = 20
"""As many first and last tokens are combined."""
_LONGEST_ANSWER = 30
"""Tokens."""


class Spans:
    """First and last token of an answer per question."""

    model_class = "AutoModelForQuestionAnswering"
    label_names: tuple[str, ...] = ("start_positions", "end_positions")
    dropout_setting: str | None = None

    def config(self, labels: Sequence[str]) -> dict[str, Any]:
        return {"num_labels": 2}

    def encode(self, rows: Sequence[SpanRow], tokenizer: Any, *, labels: Sequence[str], length: int) -> list[Feature]:
        features = []
        for number, row in enumerate(rows):
            encoded = tokenizer(
                # A question may leave no room: at most a third of the sequence is its.
                _shortened(row.question, tokenizer, length // 3),
                row.context,
                truncation="only_second",
                max_length=length,
                stride=min(_OVERLAP, length // 3),
                return_overflowing_tokens=True,
                return_offsets_mapping=True,
            )
            for window in range(len(encoded["input_ids"])):
                inputs = {name: encoded[name][window] for name in tokenizer.model_input_names if name in encoded}
                of_context = [part == 1 for part in encoded.sequence_ids(window)]
                offsets = [
                    pair if inside else None
                    for pair, inside in zip(encoded["offset_mapping"][window], of_context, strict=True)
                ]
                features.append(inputs | {"_row": number, "_offsets": offsets} | _target(row, offsets))
        return features

    def collate(self, tokenizer: Any) -> Callable[[Sequence[Feature]], dict[str, Tensor]]:
        pad = DataCollatorWithPadding(tokenizer)
        return lambda features: dict(pad(without_notes(features)))

    def logits(self, outputs: Any, batch: Mapping[str, Tensor]) -> Tensor:
        both = torch.stack([outputs["start_logits"], outputs["end_logits"]], 1)  # [B, 2, L]
        # Padding is no prediction: it has no part in the softmax.
        return both.masked_fill(batch["attention_mask"][:, None] == 0, torch.finfo(both.dtype).min)

    def real(self, batch: Mapping[str, Tensor]) -> Tensor | None:
        return None

    def decode(
        self, outputs: Outputs, features: Sequence[Feature], rows: Sequence[SpanRow], *, labels: Sequence[str]
    ) -> list[Prediction]:
        may_be_empty = any(row.labelled and not row.answers for row in rows)
        best: list[tuple[float, str]] = [(-math.inf, "")] * len(rows)
        empty = [math.inf] * len(rows)
        for feature, start, end in zip(features, *map(np.asarray, outputs), strict=True):
            number = feature["_row"]
            # The window that is the least sure that nothing is there decides.
            empty[number] = min(empty[number], float(start[0] + end[0]))
            best[number] = max(best[number], _best_span(start, end, feature["_offsets"], rows[number].context))
        return [_prediction(text, score, none, may_be_empty) for (score, text), none in zip(best, empty, strict=True)]


def _prediction(text: str, score: float, none: float, may_be_empty: bool) -> Prediction:
    """
    Args:
        none: score of "no answer", which is not given where every question has one.
    """
    probability = 1 / (1 + math.exp(min(700.0, max(-700.0, score - none))))
    return Prediction("" if may_be_empty and none > score else text, (probability,))


def _shortened(question: str, tokenizer: Any, longest: int) -> str:
    encoded = tokenizer(question, add_special_tokens=False, return_offsets_mapping=True)
    offsets = encoded["offset_mapping"]
    return question if len(offsets) <= longest else question[: offsets[longest - 1][1]]


def _target(row: SpanRow, offsets: Sequence[tuple[int, int] | None]) -> Feature:
    """First and last token of the answer; [CLS] where this window does not hold all of it."""
    if not row.labelled:
        return {}
    places = {"start_positions": 0, "end_positions": 0}
    if row.start is None:
        return places
    stop = row.start + len(row.answers[0])
    inside = [place for place, pair in enumerate(offsets) if pair and pair[0] < stop and pair[1] > row.start]
    spans = [pair for pair in offsets if pair is not None]
    if not inside or spans[0][0] > row.start or spans[-1][1] < stop:
        return places
    return {"start_positions": inside[0], "end_positions": inside[-1]}


def _best_span(
    start: npt.NDArray[Any], end: npt.NDArray[Any], offsets: Sequence[tuple[int, int] | None], context: str
) -> tuple[float, str]:
    """Score and text of the likeliest span of one window."""
    length = len(offsets)
    found = (-math.inf, "")
    firsts = [place for place in np.argsort(-start[:length])[:_BEST] if offsets[place] is not None]
    lasts = [place for place in np.argsort(-end[:length])[:_BEST] if offsets[place] is not None]
    for first in firsts:
        for last in lasts:
            score = float(start[first] + end[last])
            if first <= last < first + _LONGEST_ANSWER and score > found[0]:
                left, right = offsets[first], offsets[last]
                assert left is not None and right is not None
                # A token that begins a word may hold the blank before it.
                found = (score, context[left[0] : right[1]].strip())
    return found
