"""What a worker does with a block: offer its documents to the vocabulary sample, or encode them into a part."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import BinaryIO

import numpy as np
import sentencepiece

from megadeberta.data.tokenizer import UNK_ID
from megadeberta.data_prep.bad_lines import Tally
from megadeberta.data_prep.blocks import Block
from megadeberta.data_prep.documents import read_documents
from megadeberta.data_prep.options import ReadOptions
from megadeberta.data_prep.parts import DOCUMENT_RECORD, Part, PartStore
from megadeberta.data_prep.sources import Source
from megadeberta.data_prep.vocabulary_sample import content_key, keyed_chunks
from megadeberta.errors import DataError
from megadeberta.storage import storage_errors

_BATCH_CHARACTERS = 1 << 20


@dataclass(frozen=True)
class WorkContext:
    """What every block of a run needs; sent to each worker once."""

    sources: tuple[Source, ...]
    read: ReadOptions


@dataclass(frozen=True)
class EncodeContext(WorkContext):
    """With the vocabulary, and where parts go."""

    tokenizer: Path
    store: PartStore
    dtype: np.dtype


def sample_block(context: WorkContext, block: Block, threshold: int) -> tuple[Tally, list[tuple[int, bytes]]]:
    """Count a block, and return the chunks of its documents whose key reaches ``threshold`` as ``(key, text)``.

    Raises:
        DataError: the block cannot be read.
    """
    tally, kept = Tally(), []
    for document in _documents(context, block, tally):
        kept += [(key, chunk) for key, chunk in keyed_chunks(document.encode()) if key >= threshold]
    return tally, kept


def encode_block(context: EncodeContext, block: Block) -> Part:
    """Encode a block's documents into part ``block.number``; ids are SentencePiece's own for each document.

    Raises:
        DataError: the block cannot be read.
        StorageError: the part cannot be written.
    """
    tally = Tally()
    draft = context.store.path(block.number, "draft-tokens")
    encoder = _Encoder(_load_processor(context.tokenizer), context.dtype)
    with storage_errors(draft), draft.open("wb") as file:
        for document in _documents(context, block, tally):
            encoder.add(document, file)
        encoder.flush(file)
    part = Part(block.number, encoder.num_tokens, encoder.num_unknown, encoder.num_words, tally)
    context.store.save(part, draft, encoder.records())
    return part


def _documents(context: WorkContext, block: Block, tally: Tally) -> Iterator[str]:
    file_format = context.sources[block.source].file_format
    documents = read_documents(block, context.read, file_format=file_format, tally=tally)
    while True:
        try:
            document = next(documents, None)
        except OSError as error:
            raise DataError(f"{block.path}: reading failed ({error.strerror}); check the disk") from error
        if document is None:
            return
        yield document


class _Encoder:
    """Encodes in batches: one call into SentencePiece for about a megabyte, ids straight into arrays."""

    def __init__(self, processor: sentencepiece.SentencePieceProcessor, dtype: np.dtype) -> None:
        self._processor = processor
        self._dtype = dtype
        self._batch: list[str] = []
        self._batch_size = 0
        self._records: list[np.ndarray] = []
        self.num_tokens = 0
        self.num_unknown = 0
        self.num_words = 0

    def add(self, document: str, file: BinaryIO) -> None:
        self._batch.append(document)
        self._batch_size += len(document)
        if self._batch_size >= _BATCH_CHARACTERS:
            self.flush(file)

    def flush(self, file: BinaryIO) -> None:
        if not self._batch:
            return
        encoded = self._processor.encode(self._batch, return_type="numpy", num_threads=1)  # one [T_i] int32 each
        ids = np.concatenate(encoded)
        records = np.empty(len(self._batch), dtype=DOCUMENT_RECORD)
        records["length"] = [len(document) for document in encoded]
        records["key"] = [content_key(text.encode()) for text in self._batch]
        file.write(ids.astype(self._dtype).tobytes())
        # Text of zero-width characters alone is normalised to nothing: no document of no tokens is kept.
        self._records.append(records[records["length"] > 0])
        self.num_words += sum(text.count(" ") + 1 for text in self._batch)
        self.num_tokens += len(ids)
        self.num_unknown += int(np.count_nonzero(ids == UNK_ID))
        self._batch, self._batch_size = [], 0

    def records(self) -> np.ndarray:
        return np.concatenate(self._records) if self._records else np.empty(0, dtype=DOCUMENT_RECORD)


@lru_cache(maxsize=1)
def _load_processor(path: Path) -> sentencepiece.SentencePieceProcessor:
    return sentencepiece.SentencePieceProcessor(model_file=str(path))
