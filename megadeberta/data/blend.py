"""Which source each sample of a blend comes from, and how many of that source came before it.

The sources are the leaves of a binary tree. Sample n of a node (counted from 0) goes to its first child, whose fraction
of the node is a, if floor((n + 1) a) > floor(n a): it is that child's sample floor(n a), or else sample n - floor(n a)
of the other one. Nothing is drawn and nothing stored: a sample costs one multiplication per level.

Any window of n samples of a node has floor(n a) or ceil(n a) of the child. In a Huffman tree the fraction of a node is
at least twice that of its grandchild, so the error of a source over any window is below 1 + 1 + 1/2 + 1/2 + ... = 4
samples, however many sources there are: 0.04 % of 10 000.
"""

# N samples · K sources

import heapq
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from megadeberta.config.blend import BlendSegment

UNIT = 1 << 40
"""Weights are whole numbers that add up to about this: equal on every machine, and exact in a checkpoint."""
_LOW = np.uint64(2**32 - 1)
_HALF = np.uint64(32)


@dataclass(frozen=True)
class _Node:
    """``first`` has the smaller weight; ``fraction``: its part of the node, times 2^64."""

    first: "_Node | str"
    second: "_Node | str"
    fraction: int


class Blend:
    """The order of the sources in a run whose weights held from given samples on."""

    def __init__(self, segments: Sequence[BlendSegment]) -> None:
        """``segments``: one at least, the first from sample 0 on, their first samples rising."""
        self.names = tuple(sorted({name for segment in segments for name in segment.sources}))
        self._first_samples = np.array([segment.first_sample for segment in segments])
        weights = [{name: source.weight for name, source in segment.sources.items()} for segment in segments]
        self._trees = [_huffman(of_segment) for of_segment in weights]
        counts = dict.fromkeys(self.names, 0)
        self._taken = [dict(counts)]
        for tree, length in zip(self._trees, np.diff(self._first_samples).tolist(), strict=False):
            _add_counts(tree, length, counts)
            self._taken.append(dict(counts))

    def locate(self, samples: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """The source of each sample ``[N]``, as a place in ``names``, and how many samples that source had before."""
        sources, ordinals = np.empty_like(samples), np.empty_like(samples)
        numbers = np.searchsorted(self._first_samples, samples, side="right") - 1
        for number in np.unique(numbers).tolist():
            places = np.flatnonzero(numbers == number)
            inside = samples[places] - self._first_samples[number]
            for name, chosen, counts in _leaves(self._trees[number], places, inside):
                sources[chosen] = self.names.index(name)
                ordinals[chosen] = counts + self._taken[number][name]
        return sources, ordinals

    def taken(self, samples: int) -> dict[str, int]:
        """How many of the first ``samples`` samples of the run each source gave."""
        number = int(np.searchsorted(self._first_samples, samples, side="right")) - 1
        counts = dict(self._taken[number])
        _add_counts(self._trees[number], samples - int(self._first_samples[number]), counts)
        return counts


def whole_weights(fractions: Mapping[str, float]) -> dict[str, int]:
    """Whole numbers in proportion to ``fractions``, which add up to 1; none becomes 0."""
    return {name: max(1, round(fraction * UNIT)) for name, fraction in fractions.items()}


def _huffman(weights: Mapping[str, int]) -> _Node | str:
    # The number makes equal weights leave the heap in one order.
    heap: list[tuple[int, int, _Node | str]] = [(weights[name], n, name) for n, name in enumerate(sorted(weights))]
    heapq.heapify(heap)
    number = len(heap)
    while len(heap) > 1:
        (small, _, first), (large, _, second) = heapq.heappop(heap), heapq.heappop(heap)
        heapq.heappush(heap, (small + large, number, _Node(first, second, (small << 64) // (small + large))))
        number += 1
    return heap[0][2]


def _leaves(
    node: _Node | str, places: NDArray[np.int64], numbers: NDArray[np.int64]
) -> Iterable[tuple[str, NDArray[np.int64], NDArray[np.int64]]]:
    """The sources below a node, the places of their samples, and the samples' numbers within the source."""
    if not len(places):
        return
    if isinstance(node, str):
        yield node, places, numbers
        return
    before = _scaled(numbers, node.fraction)
    is_first = _scaled(numbers + 1, node.fraction) > before
    yield from _leaves(node.first, places[is_first], before[is_first])
    yield from _leaves(node.second, places[~is_first], (numbers - before)[~is_first])


def _add_counts(node: _Node | str, samples: int, counts: dict[str, int]) -> None:
    if isinstance(node, str):
        counts[node] += samples
        return
    first = samples * node.fraction >> 64
    _add_counts(node.first, first, counts)
    _add_counts(node.second, samples - first, counts)


def _scaled(numbers: NDArray[np.int64], fraction: int) -> NDArray[np.int64]:
    """``floor(numbers * fraction / 2^64)``, exactly: the high word of a product of two 64-bit words."""
    words = numbers.astype(np.uint64)
    high, low = words >> _HALF, words & _LOW
    fraction_high, fraction_low = np.uint64(fraction >> 32), np.uint64(fraction & 0xFFFFFFFF)
    middle = high * fraction_low + (low * fraction_low >> _HALF)
    carry = low * fraction_high + (middle & _LOW)
    return (high * fraction_high + (middle >> _HALF) + (carry >> _HALF)).astype(np.int64)
