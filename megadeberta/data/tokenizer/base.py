"""What prep, training and export need of a tokenizer, whatever its kind."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import numpy as np
from numpy.typing import NDArray

from megadeberta.errors import DataError

if TYPE_CHECKING:
    from tokenizers import Tokenizer


def check_expected(path: Path, sha256: str, expected: str | None) -> None:
    """Refuse another tokenizer than token files were made with.

    Raises:
        DataError: ``expected`` is another hash.
    """
    if expected is not None and sha256 != expected:
        raise DataError(
            f"the shards were made with another tokenizer: they name SHA-256 {expected[:16]}…, and {path} has "
            f"{sha256[:16]}…; prepare the text with this one (`megadeberta prep TEXT --tokenizer {path}`), or give the "
            "one that they were made with (in a recipe: data.tokenizer)"
        )


class VocabularyTokenizer(ABC):
    """A vocabulary and how text is cut into its entries. Made by ``load_tokenizer``; [PAD] is 0 in all of them."""

    kind: ClassVar[str]
    file_name: ClassVar[str]
    """Of ``content`` in the folders that this package writes."""
    path: Path
    """Where it was read."""
    content: bytes
    """The one file that holds all of it."""
    sha256: str
    """Of ``content``."""
    num_pieces: int
    """Ids in token files are below this."""
    cls_id: int
    sep_id: int
    unk_id: int
    mask_id: int

    @property
    def vocab_size_needed(self) -> int:
        """Rows that a word table needs."""
        return max(self.num_pieces, self.mask_id + 1)

    @abstractmethod
    def encode_batch(self, texts: Sequence[str]) -> list[NDArray[np.int32]]:
        """Ids of each text without [CLS] and [SEP]; names of special tokens in it are text."""

    def encode_utf8(self, contents: Sequence[bytes]) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
        """The ids of ``encode_batch`` for texts in UTF-8, back to back ``[T]``, and how many each text has."""
        encoded = self.encode_batch([content.decode() for content in contents])
        lengths = np.array([len(ids) for ids in encoded], np.int64)
        return np.concatenate([np.zeros(0, np.int32), *encoded]), lengths

    def encode(self, text: str) -> list[int]:
        """Ids of one text, see ``encode_batch``."""
        return self.encode_batch([text])[0].tolist()

    @abstractmethod
    def decode(self, ids: list[int]) -> str:
        """The text of ids below ``num_pieces``; special ones but [UNK] give nothing."""

    @abstractmethod
    def piece(self, token_id: int) -> str:
        """The entry's text, ``WORD_BOUNDARY`` for a space in front; ``[MASK]`` for ``mask_id``."""

    @abstractmethod
    def piece_kinds(self) -> NDArray[np.uint8]:
        """``PieceKind`` of every id: ``[vocab_size_needed]``."""

    @abstractmethod
    def check_exportable(self) -> None:
        """That a model of this vocabulary can be exported with equal ids.

        Raises:
            DataError: it cannot.
        """

    @abstractmethod
    def fast(self) -> "Tokenizer":
        """The same vocabulary for the ``tokenizers`` library, with equal ids, templates and special tokens.

        Raises:
            DataError: see ``check_exportable``.
        """

    @abstractmethod
    def is_toss_up(self, ids: Sequence[int], other_ids: Sequence[int]) -> bool:
        """Whether two ways to cut one text are equally right, so that only rounding can decide between them."""

    @abstractmethod
    def listing(self) -> bytes:
        """Every entry on a line, for people to read."""
