"""Dropout that no layout changes: every draw is a function of (seed, layer name, sample, position, column).

Nothing reads torch's generator, so a resumed run, another number of ranks or a recomputed layer draw the same.

Shapes: B batch · L length · Lq query rows · P table rows · D columns.
"""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from megadeberta.ops.counter_dropout import CounterDropout
from megadeberta.ops.hidden_dropout import TORCH, hidden_dropout, table_dropout, threshold
from megadeberta.ops.split_mix import hash_words

_PLACE_BITS = 32


@dataclass(frozen=True)
class Draws:
    """Which random numbers the rows of one call use; the layer adds its own site to them.

    step: int64 scalar, one word for all samples of an optimizer step. places: ``[B]`` int64, the place of each sample
    in the global batch. rows: ``[B, Lq]`` int64, one word for each row.
    """

    step: Tensor
    places: Tensor
    rows: Tensor

    @classmethod
    def of(cls, sample_numbers: Tensor, length: int) -> "Draws":
        """Draws of whole sequences.

        Args:
            sample_numbers: ``[B]`` int64, ``step * 2**32 + place in the global batch``.
        """
        positions = torch.arange(length, device=sample_numbers.device)
        return cls(
            step=hash_words(sample_numbers[0] >> _PLACE_BITS, 0),
            places=sample_numbers & (2**_PLACE_BITS - 1),
            rows=hash_words(sample_numbers.unsqueeze(-1), positions),
        )

    def at(self, positions: Tensor, *, stream: int) -> "Draws":
        """Those of the rows at ``positions`` ``[B, Lq]``; another stream for each time the same layer runs again."""
        rows = self.rows.gather(1, positions)
        return Draws(hash_words(self.step, stream), self.places, hash_words(rows, stream))


class HiddenDropout(nn.Module):
    """Dropout of rows of hidden states.

    site: tells the draws of one layer from those of another. site_word: the same as an int64 scalar on the device,
    where one compiled program serves several layers. implementation: see ``hidden_dropout``.
    """

    def __init__(self, probability: float) -> None:
        super().__init__()
        self.probability = probability
        self.site = 0
        self.site_word: Tensor | None = None
        self.implementation = TORCH

    @property
    def is_active(self) -> bool:
        return self.training and threshold(self.probability) > 0

    def keys(self, draws: Draws | None) -> tuple[Tensor | None, int]:
        """The words of the rows, int64 ``[B, Lq]``, and the site with which they are drawn; no words when nothing is
        dropped."""
        return self._at_site(needed(draws).rows) if self.is_active else (None, 0)

    def _at_site(self, words: Tensor) -> tuple[Tensor, int]:
        return (words, self.site) if self.site_word is None else (words ^ self.site_word, 0)

    def forward(self, hidden: Tensor, draws: Draws | None) -> Tensor:
        """``[B, Lq, D]``, rows as in ``draws``."""
        keys, site = self.keys(draws)
        if keys is None:
            return hidden
        return hidden_dropout(hidden, keys, probability=self.probability, site=site, implementation=self.implementation)

    def of_table(self, table: Tensor, draws: Draws | None) -> Tensor:
        """``[P, D]`` of a table that all samples share: one mask for a whole optimizer step."""
        if not self.is_active:
            return table
        word, site = self._at_site(needed(draws).step)
        return table_dropout(table, word, probability=self.probability, site=site, implementation=self.implementation)

    def extra_repr(self) -> str:
        return f"{self.probability:g}"


class AttentionDropout(nn.Module):
    """Dropout of attention weights: describes the draw, which the attention op makes.

    first_head: global number of the first head here. site, site_word: as of ``HiddenDropout``.
    """

    def __init__(self, probability: float) -> None:
        super().__init__()
        self.probability = probability
        self.site = 0
        self.site_word: Tensor | None = None
        self.first_head = 0

    def forward(self, draws: Draws | None) -> CounterDropout | None:
        """What to pass to ``disentangled_attention``; None when nothing is dropped."""
        if not self.training or threshold(self.probability) == 0:
            return None
        draws = needed(draws)
        seed = draws.step ^ (self.site if self.site_word is None else self.site_word)
        return CounterDropout(self.probability, seed, draws.places, self.first_head)

    def extra_repr(self) -> str:
        return f"{self.probability:g}"


def needed(draws: Draws | None) -> Draws:
    """The draws, where there must be some.

    Raises:
        ValueError: the batch has no sample numbers.
    """
    if draws is None:
        raise ValueError(
            "training with dropout needs sample_numbers [B] in the batch: they decide what is dropped; "
            "give them, or call eval() first"
        )
    return draws


def set_sites(named_modules: Iterable[tuple[str, nn.Module]], *, seed: int) -> None:
    """Give every module that draws its site.

    Args:
        named_modules: with the global names, the same under every layout.
    """
    for name, module in named_modules:
        if hasattr(module, "site"):
            drawing: Any = module
            digest = hashlib.sha256(f"{seed}/{name}".encode()).digest()
            drawing.site = int.from_bytes(digest[:8], "little", signed=True)
