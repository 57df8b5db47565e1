"""BLiMP (Warstadt et al. 2020): pairs of sentences of which one is grammatical, and which a model finds likelier.

Of a masked model a sentence's score is its pseudo-log-likelihood: the sum over its tokens of the log probability that
each gets where it alone is masked (Salazar et al. 2020). A pair is right if the good sentence's is higher.

Shapes: R rows of a batch · L length · V vocabulary.
"""

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from megadeberta.config.waiting import counted
from megadeberta.errors import DataError
from megadeberta.evaluate.inputs import Pair

_USUAL_LENGTH = 128


@dataclass(frozen=True)
class Sentence:
    """Token ids, [CLS] and [SEP] included, and the places of those to predict."""

    ids: tuple[int, ...]
    places: tuple[int, ...]


class TokenModel(Protocol):
    """What predicts masked tokens."""

    mask_id: int
    longest: int | None
    """Tokens of the longest sentence that the model has positions for; None: any."""

    def encode(self, texts: Sequence[str]) -> list[Sentence]:
        """The sentences' tokens."""

    def logits(self, ids: Tensor, places: Tensor) -> Tensor:
        """``[R, V]`` of rows ``[R, L]`` without padding, each at its place ``[R]``, both on the CPU."""


@dataclass(frozen=True)
class PairScores:
    """Fractions of pairs that are right."""

    pairs: int
    accuracy: float
    """Over all pairs; BLiMP's overall figure where every paradigm has as many."""
    interval: float
    """Half of the width of the 95 % interval of ``accuracy``, of independent pairs."""
    fields: Mapping[str, float]
    phenomena: Mapping[str, float]
    paradigms: Mapping[str, float]


def score_pairs(model: TokenModel, pairs: Sequence[Pair], *, batch_size: int) -> PairScores:
    """Compare both sentences of every pair; equal scores are wrong, as no sentence is preferred.

    Args:
        batch_size: see ``log_likelihoods``.

    Raises:
        DataError: a sentence is longer than the model's positions.
    """
    texts = list(dict.fromkeys(text for pair in pairs for text in (pair.good, pair.bad)))
    scores = dict(zip(texts, log_likelihoods(model, model.encode(texts), batch_size=batch_size), strict=True))
    right = [scores[pair.good] > scores[pair.bad] for pair in pairs]
    accuracy = sum(right) / len(right)
    return PairScores(
        pairs=len(pairs),
        accuracy=accuracy,
        interval=1.96 * math.sqrt(accuracy * (1 - accuracy) / len(right)),
        fields=_means((pair.field for pair in pairs), right),
        phenomena=_means((pair.phenomenon for pair in pairs), right),
        paradigms=_means((pair.paradigm for pair in pairs), right),
    )


@torch.no_grad()
def log_likelihoods(model: TokenModel, sentences: Sequence[Sentence], *, batch_size: int) -> list[float]:
    """The pseudo-log-likelihood of each sentence, in nats.

    Args:
        batch_size: rows at a time, as many more as sentences are shorter than 128 tokens; only sentences of one length
            share a batch, so that there is no padding.
    """
    longest = max(len(sentence.ids) for sentence in sentences)
    if model.longest is not None and longest > model.longest:
        raise DataError(f"a sentence has {longest} tokens with [CLS] and [SEP], the model takes {model.longest}")
    by_length: dict[int, list[tuple[int, int]]] = defaultdict(list)
    for number, sentence in enumerate(sentences):
        by_length[len(sentence.ids)] += [(number, place) for place in sentence.places]
    totals = torch.zeros(len(sentences), dtype=torch.float64)
    batches = [
        rows[start : start + at_once]
        for length, rows in by_length.items()
        for at_once in (batch_size * max(1, _USUAL_LENGTH // length),)
        for start in range(0, len(rows), at_once)
    ]
    for rows in counted(batches):
        numbers, places = torch.tensor(rows).T
        ids = torch.tensor([sentences[number].ids for number, _ in rows])
        targets = ids.gather(1, places[:, None])  # [R, 1]
        logits = model.logits(ids.scatter(1, places[:, None], model.mask_id), places)
        found = logits.double().log_softmax(-1).gather(1, targets.to(logits.device))[:, 0]
        totals.index_add_(0, numbers, found.cpu())
    scores: list[float] = totals.tolist()
    return scores


def _means(names: Iterable[str], right: Sequence[bool]) -> dict[str, float]:
    found: dict[str, list[bool]] = defaultdict(list)
    for name, value in zip(names, right, strict=True):
        found[name].append(value)
    return {name: sum(values) / len(values) for name, values in sorted(found.items())}
