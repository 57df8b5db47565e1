"""The SentencePiece vocabulary. [MASK] is one of its pieces, or else its id is the number of pieces."""

import contextlib
import functools
import hashlib
import math
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import sentencepiece
from numpy.typing import NDArray

from megadeberta.config.set_files import TOKENIZER_FILE
from megadeberta.data.tokenizer.base import VocabularyTokenizer, check_expected
from megadeberta.data.tokenizer.pieces import (
    CLS_ID,
    MASK,
    PAD_ID,
    SEP_ID,
    SPECIAL_PIECES,
    UNK_ID,
    PieceKind,
    kind_of_text,
)
from megadeberta.data.tokenizer.word_encoder import WordEncoder
from megadeberta.data.tokenizer.word_model import read_word_model
from megadeberta.errors import DataError

if TYPE_CHECKING:
    from tokenizers import Tokenizer

_FEW_BYTES = 64 << 10
"""Less text than this at once is not worth looking up its words."""
_ROUNDING = 2.0**-22
_HOW_TO_TRAIN = (
    "train one with `megadeberta prep`, or with SentencePiece's --model_type=unigram --pad_id=0 --bos_id=1 --eos_id=2 "
    "--unk_id=3 --pad_piece=[PAD] --bos_piece=[CLS] --eos_piece=[SEP] --unk_piece=[UNK]"
)
_DOWNLOAD = (
    "of a model of the hub, `hf download {repo} --local-dir FOLDER` fetches it, or `megadeberta convert import {repo} "
    "FOLDER` with the weights: give FOLDER"
)


class SentencePieceTokenizer(VocabularyTokenizer):
    """A unigram SentencePiece model with the special ids of this file; made by ``load``."""

    kind = "unigram"
    file_name = TOKENIZER_FILE
    cls_id, sep_id, unk_id = CLS_ID, SEP_ID, UNK_ID

    def __init__(
        self, processor: sentencepiece.SentencePieceProcessor, pieces: list[str], path: Path, content: bytes
    ) -> None:
        """``content`` of ``path``, read and checked by ``load``."""
        self._processor = processor
        self.path = path
        self.content = content
        self._pieces = pieces
        self.sha256 = hashlib.sha256(content).hexdigest()
        self.num_pieces = len(pieces)
        self.mask_id = pieces.index(MASK) if MASK in pieces else self.num_pieces

    @classmethod
    def load(cls, path: Path, *, expected_sha256: str | None = None) -> "SentencePieceTokenizer":
        """Read and validate a model file.

        Args:
            expected_sha256: refuse any other file before SentencePiece parses it.

        Raises:
            DataError: missing, damaged, not the expected file, not unigram, or other special ids.
        """
        content = _read(path)
        check_expected(path, hashlib.sha256(content).hexdigest(), expected_sha256)
        try:
            processor = sentencepiece.SentencePieceProcessor(model_proto=content)
            pieces = _pieces_of(processor)
        except (RuntimeError, UnicodeDecodeError) as error:
            raise DataError(f"{path} is not a SentencePiece model, or it is damaged; {_HOW_TO_TRAIN}") from error
        _check_unigram(processor, path)
        _check_special_ids(processor, pieces, path)
        return cls(processor, pieces, path, content)

    def encode_batch(self, texts: Sequence[str]) -> list[NDArray[np.int32]]:
        return self._processor.encode(list(texts), return_type="numpy", num_threads=1)

    def encode_utf8(self, contents: Sequence[bytes]) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
        encoder = self._word_encoder if sum(map(len, contents)) >= _FEW_BYTES else None
        return encoder.encode(contents) if encoder is not None else super().encode_utf8(contents)

    @functools.cached_property
    def _word_encoder(self) -> WordEncoder | None:
        model = read_word_model(self.content)
        return None if model is None else WordEncoder(self._processor, model)

    def encode(self, text: str) -> list[int]:
        return self._processor.encode(text)

    def decode(self, ids: list[int]) -> str:
        return self._processor.decode(ids)

    def is_toss_up(self, ids: Sequence[int], other_ids: Sequence[int]) -> bool:
        # SentencePiece adds up in 32 bits.
        likelihood, other = (math.fsum(map(self._processor.get_score, found)) for found in (ids, other_ids))
        replaced = (Counter(ids) - Counter(other_ids)).total()
        return abs(likelihood - other) <= (1 + replaced) * _ROUNDING * abs(likelihood)

    def piece(self, token_id: int) -> str:
        return MASK if token_id == self.mask_id else self._pieces[token_id]

    def piece_kinds(self) -> NDArray[np.uint8]:
        return np.array([self._kind(token_id) for token_id in range(self.vocab_size_needed)], np.uint8)

    def _kind(self, token_id: int) -> PieceKind:
        model = self._processor
        if token_id <= UNK_ID or token_id == self.mask_id or model.is_control(token_id) or model.is_unused(token_id):
            return PieceKind.SPECIAL
        # The bytes of a character stand for it one by one, and only together: each continues what is in front.
        return PieceKind.CONTINUATION if model.is_byte(token_id) else kind_of_text(self._pieces[token_id])

    def check_exportable(self) -> None:
        from megadeberta.data.tokenizer.fast.normalizer import check_normalization
        from megadeberta.data.tokenizer.fast.sentencepiece_file import parse_unigram_model

        with self._named():
            check_normalization(parse_unigram_model(self.content).charsmap)

    def fast(self) -> "Tokenizer":
        from megadeberta.data.tokenizer.fast.sentencepiece_file import parse_unigram_model
        from megadeberta.data.tokenizer.fast.unigram import unigram_tokenizer

        with self._named():
            return unigram_tokenizer(parse_unigram_model(self.content))

    def listing(self) -> bytes:
        return vocabulary_listing(self._processor)

    @contextlib.contextmanager
    def _named(self) -> Iterator[None]:
        """Put the file's name ahead of an error about what it holds."""
        try:
            yield
        except DataError as error:
            raise DataError(f"{self.path}: {error}") from None


def _read(path: Path) -> bytes:
    try:
        content = path.read_bytes()
    except OSError as error:
        is_of_hub = len(path.parts) == 2 and not path.parent.exists() and path.suffix not in (".model", ".json", ".txt")
        remedy = _DOWNLOAD.format(repo=path) if is_of_hub else _HOW_TO_TRAIN
        raise DataError(f"cannot read the tokenizer {path}: {error.strerror}; {remedy}") from error
    if not content:
        raise DataError(f"the tokenizer {path} is an empty file; {_HOW_TO_TRAIN}")
    return content


def vocabulary_listing(processor: sentencepiece.SentencePieceProcessor) -> bytes:
    """What SentencePiece writes as ``spm.vocab``: one ``piece<TAB>score`` a line."""
    lines = (f"{piece}\t{processor.get_score(token_id):g}\n" for token_id, piece in enumerate(_pieces_of(processor)))
    return "".join(lines).encode()


def _pieces_of(processor: sentencepiece.SentencePieceProcessor) -> list[str]:
    return [processor.id_to_piece(token_id) for token_id in range(processor.get_piece_size())]


def _check_unigram(processor: sentencepiece.SentencePieceProcessor, path: Path) -> None:
    # The wrapper does not tell the model type, but of the four only unigram can give alternative segmentations.
    try:
        processor.nbest_encode_as_ids("a", 2)
    except RuntimeError as error:
        raise DataError(
            f"{path} is not a unigram model (bpe, word or char), and transformers would read it as if it were; "
            f"{_HOW_TO_TRAIN}"
        ) from error


def _check_special_ids(processor: sentencepiece.SentencePieceProcessor, pieces: list[str], path: Path) -> None:
    found = pieces[: len(SPECIAL_PIECES)]
    roles = (processor.pad_id(), processor.bos_id(), processor.eos_id(), processor.unk_id())
    if found != list(SPECIAL_PIECES) or roles != (PAD_ID, CLS_ID, SEP_ID, UNK_ID):
        raise DataError(
            f"{path} has other special ids: found {_describe(found)}, with pad, bos, eos and unk ids {roles}; "
            f"needed {_describe(SPECIAL_PIECES)} in these roles; {_HOW_TO_TRAIN}"
        )


def _describe(pieces: Sequence[str]) -> str:
    return " ".join(f"{token_id}={piece}" for token_id, piece in enumerate(pieces))
