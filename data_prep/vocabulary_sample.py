"""The text a vocabulary is trained on: how much of it, and which.

The sample is the set of chunks with the largest keys, so it depends neither on the order of files nor on the number of
workers, and it is shuffled by the same keys. A chunk is a document, or a part of a long one. Validation documents are
those with the smallest keys, so a corpus larger than the sample trains its vocabulary without them.
"""

import hashlib
import heapq
from collections.abc import Iterable, Iterator, Sequence

from megadeberta.data_prep.options import VocabularyOptions
from megadeberta.errors import ConfigError
from megadeberta.memory import machine_memory

CHUNK_BYTES = 128 << 10
"""A longer document is offered in parts, or a few books would be the whole sample."""
_BYTES_PER_ENTRY, _LEAST_BYTES = 2000, 32 << 20
MEMORY_PER_BYTE, SECONDS_PER_MEGABYTE = 21, 1.1
"""Of unigram training: resident bytes per byte of sample, and seconds of one core."""
_MEMORY_FRACTION = 0.75
_SENTENCE_CHARACTERS = 1000  # SentencePiece drops sentences above 4192 bytes; 4 bytes a character at most
_HELD_OUT_BITS = 60
"""Documents whose key is below 2^60, a sixteenth of them, may be held out: the keys of their chunks stay below too."""


def content_key(text: bytes) -> int:
    """64 bits of a document's content: equal documents share it, so they never straddle the train/valid split."""
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little")


def keyed_chunks(text: bytes) -> Iterator[tuple[int, bytes]]:
    """A document as ``(key, chunk)``, cut at spaces into chunks of ``CHUNK_BYTES`` if it is longer."""
    key = content_key(text)
    if len(text) <= CHUNK_BYTES:
        yield key, text
        return
    held_out = 1 << _HELD_OUT_BITS
    while text:
        stop = len(text) if len(text) <= CHUNK_BYTES else text.rfind(b" ", 1, CHUNK_BYTES)
        if stop < 0:  # no space: at the start of a character
            stop = next(place for place in range(CHUNK_BYTES, 0, -1) if text[place] & 0xC0 != 0x80)
        chunk, text = text[:stop], text[stop:].lstrip(b" ")
        random = content_key(chunk) % held_out
        yield (random if key < held_out else held_out + random * 15), chunk


def sample_bytes(options: VocabularyOptions) -> int:
    """Most bytes of text to train on: what was asked for, or what fits the size of the vocabulary and the machine.

    Raises:
        ConfigError: what was asked for needs more memory than the machine has.
    """
    fits = int(machine_memory() * _MEMORY_FRACTION / MEMORY_PER_BYTE)
    if options.sample_bytes is None:
        return max(1 << 16, min(fits, max(_LEAST_BYTES, _BYTES_PER_ENTRY * (options.size or 0))))
    if options.size is not None and options.sample_bytes * MEMORY_PER_BYTE > machine_memory():
        raise ConfigError(
            f"--vocab-sample-bytes={options.sample_bytes} needs about "
            f"{options.sample_bytes * MEMORY_PER_BYTE / 1e9:.0f} GB of memory, and this machine has "
            f"{machine_memory() / 1e9:.0f} GB; choose {fits} or less"
        )
    return options.sample_bytes


class Sample:
    """The chunks with the largest keys that together reach ``budget`` bytes; identical ones count once.

    ``threshold`` only rises: a chunk below it can never become part of the sample.
    """

    def __init__(self, budget: int, *, threshold: int = 0) -> None:
        self._budget = budget
        self._size = 0
        self._heap: list[tuple[int, bytes]] = []
        self._keys: set[int] = set()
        self.threshold = threshold

    def add(self, chunks: Iterable[tuple[int, bytes]]) -> None:
        """Offer chunks as ``(key, text)``."""
        for key, text in chunks:
            if key < self.threshold or key in self._keys:
                continue
            heapq.heappush(self._heap, (key, text))
            self._keys.add(key)
            self._size += len(text)
            self._trim()

    def limit(self, budget: int) -> None:
        """Lower the budget."""
        self._budget = min(self._budget, budget)
        self._trim()

    def _trim(self) -> None:
        while self._heap and self._size - len(self._heap[0][1]) >= self._budget:
            dropped, text = heapq.heappop(self._heap)
            self._keys.remove(dropped)
            self._size -= len(text)
        if self._size >= self._budget and self._heap:
            self.threshold = self._heap[0][0]

    @property
    def num_bytes(self) -> int:
        """Bytes of text in the sample."""
        return self._size

    @property
    def is_all(self) -> bool:
        """Whether everything offered is in it."""
        return self.threshold == 0

    def chunks(self) -> list[tuple[int, bytes]]:
        """The sample in the order of its keys."""
        return sorted(self._heap)

    def sentences(self) -> Iterator[str]:
        """The sample in the order of its keys, in pieces short enough for SentencePiece."""
        for _, text in self.chunks():
            yield from _sentences(text.decode())


class CorpusSamples:
    """One sample of each given corpus while they are read, and one of all in the end."""

    def __init__(self, budget: int, num_corpora: int, options: VocabularyOptions) -> None:
        self._budget = budget
        self._options = options
        self._is_one = options.temperature == 1 and not options.weights
        self._samples = [Sample(budget) for _ in range(1 if self._is_one else num_corpora)]
        self._text_bytes = [0] * num_corpora

    def threshold(self, corpus: int) -> int:
        """What a chunk of this corpus must reach."""
        return self._of(corpus).threshold

    def add(self, corpus: int, chunks: Iterable[tuple[int, bytes]], *, text_bytes: int) -> None:
        """Offer chunks of text of a corpus, and count all of the text they are from."""
        self._of(corpus).add(chunks)
        self._text_bytes[corpus] += text_bytes

    def _of(self, corpus: int) -> Sample:
        return self._samples[0 if self._is_one else corpus]

    def joined(self) -> Sample:
        """The sample of all corpora: by their sizes, or with their weights and the temperature."""
        if self._is_one:
            return self._samples[0]
        weights = self._options.weights or (1.0,) * len(self._samples)
        wanted = [
            weight * size ** (1 / self._options.temperature)
            for weight, size in zip(weights, self._text_bytes, strict=True)
        ]
        budgets = divide(self._budget, wanted, [sample.num_bytes for sample in self._samples])
        joined = Sample(self._budget + CHUNK_BYTES * len(budgets))
        for sample, budget in zip(self._samples, budgets, strict=True):
            sample.limit(budget)
            joined.add(sample.chunks() if budget else ())
        return joined


def divide(total: int, wanted: Sequence[float], there: Sequence[int]) -> list[int]:
    """``total`` bytes in proportion to ``wanted``, to none more than is ``there``: the others get what it leaves."""
    given, left = [0] * len(wanted), total
    open_ones = {number for number, weight in enumerate(wanted) if weight > 0}
    while open_ones and left > 0:
        scale = left / sum(wanted[number] for number in open_ones)
        full = {number for number in open_ones if wanted[number] * scale >= there[number]}
        for number in full or open_ones:
            given[number] = there[number] if full else int(wanted[number] * scale)
        left -= sum(given[number] for number in full or open_ones)
        open_ones = open_ones - full if full else set()
    return given


def _sentences(text: str) -> Iterator[str]:
    start = 0
    while len(text) - start > _SENTENCE_CHARACTERS:
        space = text.rfind(" ", start + 1, start + _SENTENCE_CHARACTERS)
        stop = space if space > 0 else start + _SENTENCE_CHARACTERS
        yield text[start:stop]
        start = stop + (space > 0)
    yield text[start:]
