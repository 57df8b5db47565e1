"""Byte-level byte pair encoding, as GPT-2 and DeBERTa v1 have it: ``vocab.json`` and ``merges.txt``, or one file."""

from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from megadeberta.data.tokenizer.library import LibraryTokenizer
from megadeberta.data.tokenizer.pieces import WORD_BOUNDARY, PieceKind, kind_of_text
from megadeberta.errors import DataError


def byte_characters() -> dict[str, int]:
    """The character that stands for each byte: itself where it can be seen, others from U+0100 on."""
    visible = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in visible]
    return {chr(byte): byte for byte in visible} | {chr(256 + place): byte for place, byte in enumerate(others)}


_BYTES = byte_characters()


class ByteBpeTokenizer(LibraryTokenizer):
    """Every text has tokens, down to single bytes; a space belongs to the word behind it."""

    kind = "bpe"
    model_type = "BPE"

    def kind_of(self, text: str) -> PieceKind:
        read = self._read(text)
        # Bytes of a part of a character go with what stands in front.
        return PieceKind.CONTINUATION if read is None else kind_of_text(read)

    def piece(self, token_id: int) -> str:
        text = super().piece(token_id)
        if token_id in self._special:
            return text
        return self._read(text) or text

    def _read(self, text: str) -> str | None:
        """What an entry stands for; None if that is no whole characters."""
        if not all(character in _BYTES for character in text):
            return text
        try:
            read = bytes(_BYTES[character] for character in text).decode()
        except UnicodeDecodeError:
            return None
        return WORD_BOUNDARY + read[1:] if read.startswith(" ") else read


def read_byte_bpe(vocabulary: Path, merges: Path, *, add_prefix_space: bool) -> Tokenizer:
    """A tokenizer of the two files.

    Raises:
        DataError: they cannot be read, or do not belong together.
    """
    try:
        model = models.BPE.from_file(str(vocabulary), str(merges))
    except Exception as error:  # the library raises Exception itself
        raise DataError(
            f"{vocabulary} and {merges.name} are not the vocabulary and merges of one byte pair encoding ({error}); "
            "give those of one model"
        ) from None
    return byte_level(model, add_prefix_space=add_prefix_space)


def byte_level(model: models.BPE, *, add_prefix_space: bool = False) -> Tokenizer:
    """A byte-level tokenizer around a model."""
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=add_prefix_space)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer
