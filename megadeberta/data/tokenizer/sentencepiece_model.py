"""The SentencePiece vocabulary. [MASK] is not in the file; its id is the number of pieces."""

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import sentencepiece
from numpy.typing import NDArray

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
from megadeberta.errors import DataError

_HOW_TO_TRAIN = (
    "train one with `megadeberta prep`, or with SentencePiece's --model_type=unigram --pad_id=0 --bos_id=1 --eos_id=2 "
    "--unk_id=3 --pad_piece=[PAD] --bos_piece=[CLS] --eos_piece=[SEP] --unk_piece=[UNK]"
)


class SentencePieceTokenizer:
    """A unigram SentencePiece model with the special ids of this file; made by ``load``."""

    def __init__(self, processor: sentencepiece.SentencePieceProcessor, pieces: list[str], sha256: str) -> None:
        self._processor = processor
        self._pieces = pieces
        self.sha256 = sha256
        self.num_pieces = len(pieces)
        self.mask_id = self.num_pieces
        self.vocab_size_needed = self.num_pieces + 1

    @classmethod
    def load(cls, path: Path, *, expected_sha256: str | None = None) -> "SentencePieceTokenizer":
        """Read and validate a model file.

        Args:
            expected_sha256: refuse any other file before SentencePiece parses it.

        Raises:
            DataError: missing, damaged, not the expected file, not unigram, or other special ids.
        """
        content = _read(path)
        sha256 = hashlib.sha256(content).hexdigest()
        if expected_sha256 is not None and sha256 != expected_sha256:
            raise DataError(
                f"the shards were made with another tokenizer: they name SHA-256 {expected_sha256[:16]}…, and {path} "
                f"has {sha256[:16]}…; set data.tokenizer to the spm.model they were made with, or prepare them again"
            )
        try:
            processor = sentencepiece.SentencePieceProcessor(model_proto=content)
            pieces = [processor.id_to_piece(token_id) for token_id in range(processor.get_piece_size())]
        except (RuntimeError, UnicodeDecodeError) as error:
            raise DataError(f"{path} is not a SentencePiece model, or it is damaged; {_HOW_TO_TRAIN}") from error
        _check_unigram(processor, path)
        _check_special_ids(processor, pieces, path)
        return cls(processor, pieces, sha256)

    def encode(self, text: str) -> list[int]:
        """Ids of ``text`` without [CLS] and [SEP]; a character the vocabulary lacks becomes [UNK]."""
        return self._processor.encode(text)

    def decode(self, ids: list[int]) -> str:
        """Text of ids below ``num_pieces``; [PAD], [CLS] and [SEP] give nothing."""
        return self._processor.decode(ids)

    def piece(self, token_id: int) -> str:
        """The piece's text; ``[MASK]`` for ``mask_id``."""
        return MASK if token_id == self.mask_id else self._pieces[token_id]

    def piece_kinds(self) -> NDArray[np.uint8]:
        """``PieceKind`` of every id, [MASK] included: ``[num_pieces + 1]``."""
        return np.array([self._kind(token_id) for token_id in range(self.num_pieces)] + [PieceKind.SPECIAL], np.uint8)

    def _kind(self, token_id: int) -> PieceKind:
        model = self._processor
        if token_id <= UNK_ID or model.is_control(token_id) or model.is_unused(token_id) or model.is_unknown(token_id):
            return PieceKind.SPECIAL
        return kind_of_text(self._pieces[token_id])


def _read(path: Path) -> bytes:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DataError(f"cannot read the tokenizer {path}: {error.strerror}; {_HOW_TO_TRAIN}") from error
    if not content:
        raise DataError(f"the tokenizer {path} is an empty file; {_HOW_TO_TRAIN}")
    return content


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
