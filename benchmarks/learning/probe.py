"""A linear probe: logistic regression on features of a model that is not trained any further.

Shapes: B batch · L length · D hidden size.
"""

from collections.abc import Sequence
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor

from learning.labelled import draws, read_rows

_ROWS_AT_ONCE = 64


@torch.no_grad()
def features(model: Any, tokenizer: Any, texts: Sequence[str], *, length: int) -> Tensor:
    """The mean over a text's tokens of the hidden states of each layer and of the embeddings: ``[texts, (N + 1) * D]``.

    Args:
        model: a backbone of transformers, in evaluation mode.
    """
    order = sorted(range(len(texts)), key=lambda number: len(texts[number]))
    found: dict[int, Tensor] = {}
    for start in range(0, len(order), _ROWS_AT_ONCE):
        numbers = order[start : start + _ROWS_AT_ONCE]
        batch = tokenizer(
            [texts[number] for number in numbers],
            padding=True,
            truncation=True,
            max_length=length,
            return_tensors="pt",
        )
        states = model(batch.input_ids, attention_mask=batch.attention_mask, output_hidden_states=True).hidden_states
        mask = batch.attention_mask[..., None]  # [B, L, 1]
        means = torch.cat([(layer * mask).sum(1) / mask.sum(1) for layer in states], dim=-1)
        found |= dict(zip(numbers, means, strict=True))
    return torch.stack([found[number] for number in range(len(texts))])


def probe(model: Any, tokenizer: Any, folder: Path, *, rows: int, length: int) -> float:
    """Accuracy on a set's test rows, the mean of the draws of ``rows`` training rows."""
    pool, test = (read_rows(folder / f"{split}.jsonl") for split in ("pool", "test"))
    of_pool, of_test = (features(model, tokenizer, texts, length=length).numpy() for texts, _ in (pool, test))
    labels = pool[1]
    found = []
    for drawn in draws(labels, rows):
        classifier = make_pipeline(StandardScaler(), LogisticRegression(C=0.01, max_iter=2000))
        classifier.fit(of_pool[drawn], [labels[place] for place in drawn])
        found.append(float(classifier.score(of_test, test[1])))
    return mean(found)
