"""Pairs of documents that agree in a band and are as similar as was asked. D documents, P pairs.

Bands do not know of each other, so that one, or several of a small corpus, is a piece of work for one worker and a
file that a killed run need not make again. A band is read in pieces by the value of its hashes: memory does not grow
with the number of documents.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np

from megadeberta.data_prep.near.exact import DocumentTexts, ExactComparison, needed_overlaps
from megadeberta.data_prep.near.sketches import BANDS, COMPARED, WORDS_COMPARED, SketchFiles
from megadeberta.storage import PendingFile

_PIECE = 1 << 20
"""Documents of a band that are sorted at once."""
_NEIGHBOURS = 8
"""With so many documents before it that have the same hash each is compared: a run of words that thousands of documents
share makes them no pairs, and what is similar is found beside each other in some other band."""
_READ, _PAIRS = 1 << 18, 1 << 10
_WORTH_A_FILE = 2 << 20
"""Documents times bands."""
_PAIR = np.dtype("<i8")


@dataclass(frozen=True)
class LinkContext:
    """What every band needs; sent to each worker once."""

    files: SketchFiles
    texts: DocumentTexts
    similarity: float
    """The fraction of words, in their order, that two documents share at least."""

    def path(self, bands: range) -> Path:
        """The pairs of some bands; there only once all are found."""
        return self.files.folder / f"links-{bands.start:03d}-{bands.stop:03d}"

    def work(self) -> Iterator[range]:
        """All bands, in groups that are worth a file."""
        size = min(max(_WORTH_A_FILE // max(1, self.files.num_documents), 1), BANDS)
        return (range(first, min(first + size, BANDS)) for first in range(0, BANDS, size))


@dataclass(frozen=True)
class _Border:
    """How many bytes of two sketches are equal: below ``low`` in no similar pair, from ``high`` on in no other."""

    low: int
    high: int

    @classmethod
    def of(cls, overlap: float, size: int) -> "_Border":
        """Two standard deviations around what documents with this overlap have; a byte is equal by chance in 256."""
        equal = overlap + (1 - overlap) / 256
        spread = 2 * math.sqrt(size * equal * (1 - equal))
        return cls(math.ceil(size * equal - spread), math.ceil(size * equal + spread))


def find_links(context: LinkContext, bands: range) -> range:
    """Find the pairs of some bands, unless a run that was killed did; returns ``bands``.

    Raises:
        StorageError: the file system refused.
    """
    if not context.path(bands).exists():
        exact = ExactComparison(context.texts, context.similarity)
        with _whole_file(context.path(bands)) as file:
            for hashes, documents in (piece for band in bands for piece in _pieces(context.files, band)):
                for pairs in _similar(context.files, hashes, documents, exact=exact):
                    file.write(pairs.astype(_PAIR).tobytes())
    return bands


def read_links(context: LinkContext, bands: range) -> Iterator[np.ndarray]:
    """``[P, 2]`` document numbers of the pairs of some bands, in bounded groups."""
    with context.path(bands).open("rb") as file:
        while len(pairs := np.fromfile(file, dtype=_PAIR, count=2 * _READ)):
            yield pairs.reshape(-1, 2)


@contextmanager
def _whole_file(path: Path) -> Iterator[PendingFile]:
    file = PendingFile(path)
    try:
        yield file
        file.finish()
        file.publish()
    except BaseException:
        file.discard()
        raise


def _pieces(files: SketchFiles, band: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Hashes and numbers of documents, sorted by both; equal hashes are always in one piece."""
    number = max(1, -(-files.num_documents // _PIECE))
    edges = [(1 << 32) * piece // number for piece in range(number + 1)]
    for low, high in pairwise(edges):
        hashes, documents = [], []
        for start in range(0, files.num_documents, _READ):
            read = files.band(band, start, min(start + _READ, files.num_documents))
            inside = np.flatnonzero((read >= low) & (read < high))
            hashes.append(read[inside])
            documents.append(inside + start)
        if hashes:
            found, of = np.concatenate(hashes), np.concatenate(documents)
            order = np.argsort(found, kind="stable")
            yield found[order], of[order]


def _similar(
    files: SketchFiles, hashes: np.ndarray, documents: np.ndarray, *, exact: ExactComparison
) -> Iterator[np.ndarray]:
    """Each document with the nearest one before it that has the same hash and is similar: ``[P, 2]``."""
    waits = np.ones(len(hashes), dtype=bool)
    of_runs, of_words = map(_Border.of, needed_overlaps(exact.similarity), (COMPARED, WORDS_COMPARED))
    with files.compared() as rows:
        for back in range(1, _NEIGHBOURS + 1):
            places = np.flatnonzero((hashes[back:] == hashes[:-back]) & waits[back:]) + back
            for start in range(0, len(places), _PAIRS):
                some = places[start : start + _PAIRS]
                pairs = np.stack([documents[some - back], documents[some]], axis=1)
                is_equal = rows(pairs[:, 0]) == rows(pairs[:, 1])
                runs, words = is_equal[:, :COMPARED].sum(axis=1), is_equal[:, COMPARED:].sum(axis=1)
                is_similar = (runs >= of_runs.high) & (words >= of_words.high)
                is_open = (runs >= of_runs.low) & (words >= of_words.low) & ~is_similar
                is_similar[is_open] = exact(pairs[is_open])
                waits[some[is_similar]] = False
                yield pairs[is_similar]
