"""Perplexities of a text: by masking every token in turn, and from left to right.

The text is cut into pieces that fill the sequence; every token is predicted once, from its own piece.

Shapes: N tokens · L length · V vocabulary.
"""

import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from megadeberta.config.waiting import counted
from megadeberta.data.tokenizer import CLS_ID, SEP_ID
from megadeberta.evaluate.sequences import Scores, perplexity
from megadeberta.model.whole import WholeModel

Marks = tuple[int, int]
"""Ids of [CLS] and [SEP]."""
_USUAL = (CLS_ID, SEP_ID)


def score_pseudo_perplexity(
    model: WholeModel,
    text: str,
    ids: Sequence[int],
    *,
    mask_id: int,
    length: int,
    batch_size: int,
    marks: Marks = _USUAL,
) -> Scores:
    """Each token predicted from all others of its piece (Salazar et al. 2020: Masked Language Model Scoring).

    Args:
        ids: of ``text``, without [CLS] and [SEP].
        length: longest sequence, [CLS] and [SEP] included.
    """
    loss = 0.0
    for sequence in counted(_pieces(ids, length, marks), total=-(-len(ids) // (length - 2))):
        places = torch.arange(1, sequence.numel() - 1)
        for chosen in places.split(batch_size):
            rows = sequence.repeat(len(chosen), 1).scatter(1, chosen.unsqueeze(1), mask_id)
            loss += _loss(model, rows, chosen.unsqueeze(1), sequence[chosen].unsqueeze(1))
    return _scores("pseudo", loss, text, len(ids))


def score_left_to_right(
    model: WholeModel, text: str, ids: Sequence[int], *, length: int, marks: Marks = _USUAL
) -> Scores:
    """Each token predicted from those before it in its piece, [CLS] included."""
    loss = 0.0
    for sequence in counted(_pieces(ids, length, marks), total=-(-len(ids) // (length - 2))):
        places = torch.arange(sequence.numel() - 2).unsqueeze(0)
        loss += _loss(model, sequence.unsqueeze(0), places, sequence[1:-1].unsqueeze(0), prefix_lengths=torch.zeros(1))
    return _scores("ar", loss, text, len(ids))


@torch.no_grad()
def _loss(model: WholeModel, ids: Tensor, positions: Tensor, labels: Tensor, **rules: Tensor) -> float:
    """Summed cross entropy of ``labels`` at ``positions``."""
    device = next(model.parameters()).device
    ids, positions, labels = ids.to(device), positions.to(device), labels.to(device)
    rules = {name: rule.to(device) for name, rule in rules.items()}
    logits = model.mlm_logits(ids, torch.ones_like(ids), positions, **rules)
    logits = logits if logits.dtype == torch.float64 else logits.float()
    return float(torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="sum"))


def _pieces(ids: Sequence[int], length: int, marks: Marks) -> Iterator[Tensor]:
    room = length - 2
    for start in range(0, len(ids), room):
        yield torch.tensor([marks[0], *ids[start : start + room], marks[1]])


def _scores(name: str, loss: float, text: str, num_tokens: int) -> Scores:
    """A token, a word and a byte as units: only the last two compare models with different vocabularies."""
    words, size = max(1, len(text.split())), len(text.encode())
    return {
        f"{name}_perplexity": perplexity(loss / num_tokens),
        f"{name}_perplexity a word": perplexity(loss / words),
        f"{name}_bits a byte": loss / size / math.log(2),
        f"{name}_tokens": num_tokens,
    }
