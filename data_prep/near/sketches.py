"""MinHash sketches of documents, made from the tokens of finished parts.

What is compared are runs of three words, and words alone, where a word is what masking takes for one: its tokens
together, and in scripts without spaces every token alone. D documents, T tokens, U words, N runs; B bands of R rows, so
that a sketch has B * R numbers of 32 bits for the runs, and W for the words. rensa computes them.

Words alone tell an edited copy from a text that shares a long passage and nothing else, such as the footer of a site:
half a text in one piece has as many equal runs as three quarters of it in small ones.
"""

import contextlib
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from megadeberta.data.masking import starts_of_units
from megadeberta.data.token_kinds import kinds_with_words, token_kinds
from megadeberta.data_prep.machines import JoinedParts
from megadeberta.data_prep.parts import PartStore
from megadeberta.data_prep.shingles import run_hashes
from megadeberta.storage import storage_errors, write_file

RUN_WORDS = 3
BANDS, ROWS = 100, 3
"""Documents whose runs overlap by J (of their union) agree in one band at least with probability 1 - (1 - J^R)^B."""
COMPARED = 256
"""Numbers of a sketch of which one byte is kept, for comparing two documents that agree in a band."""
WORDS_COMPARED = 128
"""W: numbers for the words of which one byte is kept."""
_FEWEST_WORDS = 10
"""A shorter document is one run: headings and captions that differ in a word or a number are not the same."""
_SEED, _WORD_SEED = 0x6D656761, 0x776F7264
_ROW_BYTES = COMPARED + WORDS_COMPARED
_PLACE = np.dtype([("start", "<i8"), ("length", "<i4")])
"""Of a document's tokens in its part."""
_CHUNK_TOKENS, _CHUNK_DOCUMENTS = 1 << 19, 2048
_POWERS = np.array([pow(0x9E3779B97F4A7C15, place, 1 << 64) for place in range(1, 33)], dtype=np.uint64)
_BAND_FACTORS = np.array([0xD6E8FEB86659FD93, 0xA0761D6478BD642F, 0xE7037ED1A0B428DB], dtype=np.uint64)


@dataclass(frozen=True)
class SketchFiles:
    """Sketches of ``num_documents`` documents in a folder; a part of the documents is there once its mark is."""

    folder: Path
    num_documents: int

    @property
    def num_bytes(self) -> int:
        """Room that they take."""
        return self.num_documents * (_ROW_BYTES + 4 * BANDS + _PLACE.itemsize)

    def create(self) -> None:
        """Make the files at their full size, and leave what is in them.

        Raises:
            StorageError: the file system refused.
        """
        with storage_errors(self.folder, needed=self.num_bytes):
            self.folder.mkdir(parents=True, exist_ok=True)
            sizes = (_ROW_BYTES, 4 * BANDS, _PLACE.itemsize)
            for path, size in zip(self._paths, sizes, strict=True):
                with path.open("ab") as file:
                    file.truncate(self.num_documents * size)

    @property
    def _bytes(self) -> Path:
        return self.folder / "sketches"

    @property
    def _bands(self) -> Path:
        return self.folder / "bands"

    @property
    def _paths(self) -> tuple[Path, Path, Path]:
        return self._bytes, self._bands, self.folder / "places"

    def mark(self, part: int) -> Path:
        """The file that says that the sketches of a part are on disk."""
        return self.folder / f"sketched-{part:06d}"

    @contextlib.contextmanager
    def writer(self) -> Iterator["SketchWriter"]:
        """Write sketches; all is on disk at the end.

        Raises:
            StorageError: the file system refused.
        """
        with storage_errors(self._bands, needed=self.num_bytes), contextlib.ExitStack() as stack:
            files = [stack.enter_context(path.open("r+b", buffering=0)) for path in self._paths]
            sketches, bands, places = (file.fileno() for file in files)
            yield SketchWriter(sketches, bands, places, self.num_documents)
            for file in files:
                os.fsync(file.fileno())

    def band(self, number: int, start: int, stop: int) -> np.ndarray:
        """``[stop - start]`` uint32: what documents must share to be compared."""
        offset = 4 * (number * self.num_documents + start)
        return np.fromfile(self._bands, dtype="<u4", offset=offset, count=stop - start)

    def places(self, documents: np.ndarray) -> np.ndarray:
        """``[P]`` records ``start`` and ``length``: where the tokens of documents ``[P]`` are in their parts."""
        found = np.empty(len(documents), dtype=_PLACE)
        with self._paths[2].open("rb", buffering=0) as file:
            for row, place in enumerate((documents * _PLACE.itemsize).tolist()):
                os.preadv(file.fileno(), [found[row : row + 1].data.cast("B")], place)
        return found

    @contextlib.contextmanager
    def compared(self) -> Iterator[Callable[[np.ndarray], np.ndarray]]:
        """A function from document numbers ``[P]`` to their ``[P, COMPARED + W]`` uint8.

        Read and not mapped: of a file in the cache, Linux may map far more than the rows that are touched.
        """
        with self._bytes.open("rb", buffering=0) as file:

            def rows(documents: np.ndarray) -> np.ndarray:
                found = np.empty((len(documents), _ROW_BYTES), dtype=np.uint8)
                for row, place in zip(found, (documents * _ROW_BYTES).tolist(), strict=True):
                    os.preadv(file.fileno(), [row.data], place)
                return found

            yield rows


@dataclass(frozen=True)
class SketchWriter:
    """Puts rows at their places."""

    sketches: int
    bands: int
    places: int
    num_documents: int

    def write(self, first: int, numbers: np.ndarray, starts: np.ndarray, lengths: np.ndarray) -> None:
        """Write the documents ``first`` and after.

        Args:
            numbers: ``[D, B * R + W]`` uint32.
            starts, lengths: ``[D]``: of their tokens in the part.
        """
        places = np.empty(len(numbers), dtype=_PLACE)
        places["start"], places["length"] = starts, lengths
        _write_all(self.places, places.tobytes(), first * _PLACE.itemsize)
        compared = np.concatenate([numbers[:, :COMPARED], numbers[:, BANDS * ROWS :]], axis=1)
        _write_all(self.sketches, compared.astype(np.uint8).tobytes(), first * _ROW_BYTES)
        for band, column in enumerate(band_hashes(numbers[:, : BANDS * ROWS]).T):
            _write_all(self.bands, column.astype("<u4").tobytes(), 4 * (band * self.num_documents + first))


def _write_all(descriptor: int, payload: bytes, offset: int) -> None:
    while payload:
        written = os.pwrite(descriptor, payload, offset)
        payload, offset = payload[written:], offset + written


@dataclass(frozen=True)
class SketchContext:
    """What every part needs; sent to each worker once."""

    store: PartStore | JoinedParts
    files: SketchFiles
    kinds: np.ndarray
    """``PieceKind`` of every id."""


def sketch_part(context: SketchContext, number: int, first: int, is_kept: np.ndarray) -> int:
    """Sketch a part, unless a run that was killed did; returns its number of tokens.

    Args:
        first: number of its first kept document among all kept ones.
        is_kept: ``[D]`` booleans: which of its documents are compared.

    Raises:
        StorageError: the file system refused.
    """
    lengths = context.store.documents(number)["length"].astype(np.int64)
    starts = np.cumsum(lengths) - lengths
    if not context.files.mark(number).exists():
        kinds = kinds_with_words(context.kinds)
        with context.files.writer() as writer:
            for documents, tokens in context.store.token_groups(number):
                for chunk, part in _chunks(lengths[documents], tokens):
                    chosen = is_kept[documents][chunk]
                    of_chunk = [values[documents][chunk] for values in (starts, lengths)]
                    numbers = sketches(part, of_chunk[1], kinds)[chosen]
                    writer.write(first, numbers, *(values[chosen] for values in of_chunk))
                    first += len(numbers)
        write_file(context.files.mark(number), b"")
    return int(lengths.sum())


def _chunks(lengths: np.ndarray, tokens: np.ndarray) -> Iterator[tuple[slice, np.ndarray]]:
    """Documents in groups that bound memory, and their tokens."""
    ends = np.cumsum(lengths)
    first = 0
    while first < len(ends):
        before = int(ends[first - 1]) if first else 0
        last = max(int(np.searchsorted(ends, before + _CHUNK_TOKENS, side="right")), first + 1)
        last = min(last, first + _CHUNK_DOCUMENTS)
        yield slice(first, last), tokens[before : int(ends[last - 1])]
        first = last


def sketches(tokens: np.ndarray, lengths: np.ndarray, kinds: np.ndarray) -> np.ndarray:
    """``[D, B * R + W]`` uint32.

    Args:
        tokens: ``[T]``, the documents back to back.
        lengths: ``[D]``, at least 1 each.
        kinds: ``PieceKind`` of every id.
    """
    words, num_words = document_words(tokens, lengths, kinds)
    of_runs = _digest(*document_runs(words, num_words), BANDS * ROWS, _SEED)
    return np.concatenate([of_runs, _digest(words, num_words, WORDS_COMPARED, _WORD_SEED)], axis=1)


def _digest(hashes: np.ndarray, counts: np.ndarray, size: int, seed: int) -> np.ndarray:
    from rensa import RMinHash

    offsets = np.zeros(len(counts) + 1, dtype=np.uint64)
    np.cumsum(counts, out=offsets[1:])
    matrix = RMinHash.digest_matrix_from_flat_token_hashes(hashes, offsets, size, seed)
    return np.array(matrix.to_rows(), dtype=np.uint32)


def document_words(tokens: np.ndarray, lengths: np.ndarray, kinds: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Hashes ``[U]`` of the words of all documents, and how many each has ``[D]``.

    Args:
        tokens, lengths, kinds: as of ``sketches``.
    """
    begins = np.cumsum(lengths) - lengths  # [D]: a document's first token
    opens = starts_of_units(token_kinds(kinds, tokens))
    opens[begins] = True
    starts = np.flatnonzero(opens)  # [U]
    words = _joined(_TOKEN_HASHES.of(tokens), starts)
    return words, np.diff(np.searchsorted(starts, begins), append=len(words))


def document_runs(words: np.ndarray, num_words: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Hashes ``[N]`` of the runs of all documents, and how many each has ``[D]``: at least one.

    Args:
        words, num_words: from ``document_words``.
    """
    first_words = np.cumsum(num_words) - num_words  # [D]
    is_short = num_words < _FEWEST_WORDS
    runs = np.concatenate([run_hashes(words, RUN_WORDS), np.zeros(RUN_WORDS - 1, np.uint64)])[: len(words)]
    runs[first_words[is_short]] = _joined(words, first_words)[is_short]
    place = np.arange(len(words)) - np.repeat(first_words, num_words)
    counts = np.where(is_short, 1, num_words - RUN_WORDS + 1)
    return runs[place < np.repeat(counts, num_words)], counts


def _joined(hashes: np.ndarray, starts: np.ndarray) -> np.ndarray:
    """One hash for each group of them; groups begin at ``starts``."""
    sizes = np.diff(starts, append=len(hashes))
    place = np.arange(len(hashes)) - np.repeat(starts, sizes)
    sums = np.add.reduceat(hashes * _POWERS[place % len(_POWERS)], starts)
    return run_hashes(sums ^ sizes.astype(np.uint64), 1)


class _TokenHashes:
    """A hash for every id, made when it is first needed."""

    def __init__(self) -> None:
        self._table = np.empty(0, np.uint64)

    def of(self, tokens: np.ndarray) -> np.ndarray:
        """``[T]`` uint64."""
        most = int(tokens.max()) + 1
        if most > len(self._table):
            self._table = run_hashes(run_hashes(np.arange(1, most + 1, dtype=np.uint64), 1), 1)
        return self._table[tokens]


_TOKEN_HASHES = _TokenHashes()


def band_hashes(numbers: np.ndarray) -> np.ndarray:
    """``[D, B]`` uint32 of sketches ``[D, B * R]``."""
    rows = numbers.reshape(len(numbers), BANDS, ROWS).astype(np.uint64)
    return run_hashes((rows * _BAND_FACTORS).sum(axis=2).reshape(-1), 1).reshape(-1, BANDS) >> np.uint64(32)
