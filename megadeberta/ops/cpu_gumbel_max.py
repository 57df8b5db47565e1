"""The draw on a CPU: uniform words for every id, noise only for the few ids that can win.

``-log E`` of an id is at most ``-log u``, where ``u`` is its uniform variable. The largest of all sums lies hardly ever
``_DEPTH`` below its mean, the log-sum-exp of the logits; ids that can reach that line are computed as the definition
computes them. A row whose best one does not reach it, or with a logit that is no number, is computed whole.

Shapes: R rows · V vocabulary, or the ids of one shard of it · C candidates of all rows.
"""

import numpy as np
import torch
from torch import Tensor

from megadeberta.ops.gumbel_max import perturbed, plain_best_ids
from megadeberta.ops.split_mix import FIRST_FACTOR, GOLDEN, SECOND_FACTOR

_DEPTH = 4.0
"""``exp(_DEPTH)`` ids of a row are candidates, 55; ``exp(-exp(_DEPTH))`` of the rows have none."""
_WORTHWHILE = 1024
"""Ids below which a loop over rows costs more than all the noise."""
_ROUNDING = 0.01
"""More than rounding moves the line, as long as the logits are below 10 000; beyond, a millionth of them does."""
_GOLDEN, _FIRST, _SECOND = (np.uint64(factor % 2**64) for factor in (GOLDEN, FIRST_FACTOR, SECOND_FACTOR))


@torch.library.custom_op("megadeberta::cpu_best_ids", mutates_args=())
def cpu_best_ids(logits: Tensor, keys: Tensor, inverse: float, first_id: int) -> tuple[Tensor, Tensor]:
    """As ``plain_best_ids``, to the same bits."""
    if logits.size(1) < _WORTHWHILE:
        return plain_best_ids(logits, keys, inverse, first_id)
    offsets = np.arange(first_id + 1, first_id + 1 + logits.size(1), dtype=np.uint64) * _GOLDEN
    scratch = torch.empty(logits.size(1)), np.empty_like(offsets), np.empty_like(offsets)
    found = [_candidates(*row, inverse, offsets, scratch) for row in zip(logits, keys.tolist(), strict=True)]
    values, ids = logits.new_empty(len(found), dtype=_precise(logits)), keys.new_empty(len(found))
    if not found:
        return values, ids
    columns, words, lines = zip(*found, strict=True)
    rows = np.repeat(np.arange(len(found)), [len(each) for each in columns])
    at = torch.from_numpy(rows), torch.from_numpy(np.concatenate(columns))
    sums = perturbed(logits[at], torch.from_numpy(np.concatenate(words).view(np.int64)), inverse).numpy()  # [C]
    order = np.lexsort((at[1].numpy(), -sums, rows))  # of each row the largest first, of equal ones the lowest id
    winners = dict(zip(rows[order][::-1].tolist(), order[::-1].tolist(), strict=True))
    for row, line in enumerate(lines):
        winner = winners.get(row)
        if winner is not None and sums[winner] > line:
            values[row], ids[row] = float(sums[winner]), int(at[1][winner]) + first_id
        else:
            values[row : row + 1], ids[row : row + 1] = plain_best_ids(
                logits[row : row + 1], keys[row : row + 1], inverse, first_id
            )
    return values, ids


@cpu_best_ids.register_fake
def _(logits: Tensor, keys: Tensor, inverse: float, first_id: int) -> tuple[Tensor, Tensor]:
    return logits.new_empty(logits.size(0), dtype=_precise(logits)), torch.empty_like(keys)


def _candidates(
    logits: Tensor, key: int, inverse: float, offsets: np.ndarray, scratch: tuple[Tensor, np.ndarray, np.ndarray]
) -> tuple[np.ndarray, np.ndarray, float]:
    """Columns of the ids of one row that can be the best, their words, and a line that all others are below.

    Args:
        offsets: ``[V]``, what each id adds to the key before it is hashed.
        scratch: fp32, uint64, uint64 ``[V]``.
    """
    limits, words, shifted = scratch
    torch.mul(logits, inverse, out=limits) if logits.dtype == torch.float32 else limits.copy_(logits).mul_(inverse)
    top = float(limits.max())
    total = float(limits.sub_(top).exp_().sum())
    scale = np.exp(_DEPTH) / total
    np.add(offsets, np.uint64(key % 2**64), out=words)
    for bits, factor in ((30, _FIRST), (27, _SECOND), (31, None)):
        np.bitwise_xor(words, np.right_shift(words, np.uint64(bits), out=shifted), out=words)
        if factor is not None:
            np.multiply(words, factor, out=words)
    high = words.view(np.uint32)[1::2]  # the upper half of a word, little endian
    columns = np.flatnonzero(high <= limits.mul_(scale * 2.0**32).numpy())
    return columns, words[columns], top - float(np.log(scale)) + _ROUNDING + 1e-6 * abs(top)


def _precise(logits: Tensor) -> torch.dtype:
    return torch.float64 if logits.dtype == torch.float64 else torch.float32
