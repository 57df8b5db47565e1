"""What a worker does with a block: offer its documents to the vocabulary sample, or encode them into a part."""

from collections.abc import Generator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import BinaryIO

import numpy as np

from megadeberta.data.tokenizer import VocabularyTokenizer, load_tokenizer
from megadeberta.data_prep.bad_lines import Tally
from megadeberta.data_prep.blocks import Block, Section
from megadeberta.data_prep.documents import read_documents
from megadeberta.data_prep.options import ReadOptions
from megadeberta.data_prep.parts import DOCUMENT_RECORD, Part, PartOf, PartStore
from megadeberta.data_prep.sources import Source
from megadeberta.data_prep.vocabulary_sample import Sample, content_key, keyed_chunks
from megadeberta.errors import DataError
from megadeberta.storage import open_new, storage_errors

_BATCH_CHARACTERS = 1 << 20

SourceTallies = list[tuple[int, Tally]]
"""What was counted of each source of a block, by the source's number."""


@dataclass(frozen=True)
class WorkContext:
    """What every block of a run needs; sent to each worker once."""

    sources: tuple[Source, ...]
    read: ReadOptions
    sample_every: int
    """Of so many documents one is looked at to describe the corpus."""


@dataclass(frozen=True)
class SampleContext(WorkContext):
    """With the most bytes of text that the sample may hold."""

    sample_bytes: int


@dataclass(frozen=True)
class EncodeContext(WorkContext):
    """With the vocabulary, and where parts go."""

    tokenizer: Path
    store: PartStore
    dtype: np.dtype


def sample_block(context: SampleContext, block: Block, threshold: int) -> tuple[SourceTallies, list[tuple[int, bytes]]]:
    """Count a block, and return of the chunks of its documents those that may belong to the sample: ``(key, text)``.

    Args:
        threshold: the key that a chunk must reach.

    Raises:
        DataError: the block cannot be read.
    """
    sample = Sample(context.sample_bytes, threshold=threshold)
    tallies = []
    for section in block.sections:
        tally = Tally()
        for document in documents_of(context, section, tally):
            sample.add(keyed_chunks(document.encode()))
        tallies.append((section.source, tally))
    return tallies, sample.chunks()


def load_or_encode(context: EncodeContext, block: Block) -> Part:
    """The part a killed run left for ``block``, or a new one.

    Raises:
        DataError, StorageError: as ``encode_block``.
    """
    return context.store.load(block.number) or encode_block(context, block)


def encode_block(context: EncodeContext, block: Block) -> Part:
    """Encode a block's documents into part ``block.number``; ids are the tokenizer's own for each document.

    Raises:
        DataError: the block cannot be read.
        StorageError: the part cannot be written.
    """
    draft = context.store.drafts(block.number)
    tallies = [Tally() for _ in block.sections]
    with storage_errors(draft.tokens), open_new(draft.tokens) as tokens, open_new(draft.documents) as records:
        encoder = _Encoder(_load_tokenizer(context.tokenizer), context.dtype, tokens, records, len(block.sections))
        for place, (section, tally) in enumerate(zip(block.sections, tallies, strict=True)):
            for document in documents_of(context, section, tally):
                encoder.add(document, place)
        encoder.flush()
    files = [
        PartOf(section.source, tokens, unknown, tally)
        for section, tokens, unknown, tally in zip(
            block.sections, encoder.num_tokens.tolist(), encoder.num_unknown.tolist(), tallies, strict=True
        )
    ]
    part = Part(block.number, encoder.num_words, tuple(files))
    context.store.save(part, draft)
    return part


def documents_of(context: WorkContext, section: Section, tally: Tally) -> Generator[str, None, None]:
    """See ``read_documents``.

    Raises:
        DataError: the section cannot be read.
    """
    source = context.sources[section.source]
    documents = read_documents(section, context.read, source=source, tally=tally, every=context.sample_every)
    while True:
        try:
            document = next(documents, None)
        except OSError as error:
            raise DataError(f"{section.path}: reading failed ({error.strerror}); check the disk") from error
        if document is None:
            return
        yield document


class _Encoder:
    """Encodes in batches: one call of the tokenizer for about a megabyte, ids straight into arrays."""

    # S sections of the block

    def __init__(
        self,
        tokenizer: VocabularyTokenizer,
        dtype: np.dtype,
        tokens: BinaryIO,
        records: BinaryIO,
        num_sections: int,
    ) -> None:
        self._tokenizer = tokenizer
        self._dtype = dtype
        self._tokens = tokens
        self._records = records
        self._batch: list[str] = []
        self._places: list[int] = []
        self._batch_size = 0
        self.num_tokens = np.zeros(num_sections, dtype=np.int64)  # [S]
        self.num_unknown = np.zeros(num_sections, dtype=np.int64)  # [S]
        self.num_words = 0

    def add(self, document: str, place: int) -> None:
        """``place``: of its section in the block."""
        self._batch.append(document)
        self._places.append(place)
        self._batch_size += len(document)
        if self._batch_size >= _BATCH_CHARACTERS:
            self.flush()

    def flush(self) -> None:
        if not self._batch:
            return
        contents = [text.encode() for text in self._batch]
        ids, lengths = self._tokenizer.encode_utf8(contents)  # [T], [D]
        records = np.empty(len(contents), dtype=DOCUMENT_RECORD)
        records["length"] = lengths
        records["key"] = [content_key(content) for content in contents]
        self._tokens.write(ids.astype(self._dtype).tobytes())
        # Text of zero-width characters alone is normalised to nothing: no document of no tokens is kept.
        self._records.write(records[lengths > 0].tobytes())
        # Half the time of str.count: clean text has one space between words.
        spaces = np.frombuffer(b"".join(contents), np.uint8) == ord(" ")
        self.num_words += int(np.count_nonzero(spaces)) + len(contents)
        np.add.at(self.num_tokens, self._places, lengths)
        unknown = np.flatnonzero(ids == self._tokenizer.unk_id)
        documents = np.searchsorted(np.cumsum(lengths), unknown, side="right")
        np.add.at(self.num_unknown, np.asarray(self._places)[documents], 1)
        self._batch, self._places, self._batch_size = [], [], 0


@lru_cache(maxsize=1)
def _load_tokenizer(path: Path) -> VocabularyTokenizer:
    return load_tokenizer(path)
