"""Byte-level byte pair encoding, as GPT-2 and DeBERTa v1 have it: ``vocab.json`` and ``merges.txt``, or one file."""

from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from megadeberta.data.tokenizer.library import LibraryTokenizer
from megadeberta.data.tokenizer.pieces import WORD_BOUNDARY, PieceKind, kind_of_text
from megadeberta.data.tokenizer.scripts import character_size, is_unspaced, is_unspaced_start
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
        return kind_of_text(read) if read is not None else kind_of_bytes(bytes(_BYTES[one] for one in text))

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


_INSIDE = range(0x80, 0xC0)
"""Bytes that begin no character."""
_THAI_TO_TIBETAN, _BURMESE_AND_KHMER = range(0xB8, 0xC0), (0x80, 0x81, 0x9E, 0x9F)
"""Second bytes of their characters, behind E0 and E1."""
_ALONE = {b"\xe0": PieceKind.E0, b"\xe1": PieceKind.E1}


def kind_of_bytes(content: bytes) -> PieceKind:
    """The kind of an entry that is no whole characters."""
    if content in _ALONE:
        return _ALONE[content]
    if all(byte in _INSIDE for byte in content):
        if content[0] in _THAI_TO_TIBETAN:
            return PieceKind.REST_OF_E0
        return PieceKind.REST_OF_E1 if content[0] in _BURMESE_AND_KHMER else PieceKind.REST
    begins = max(place for place, byte in enumerate(content) if byte not in _INSIDE)
    is_cut = character_size(content[begins]) > len(content) - begins
    stands_alone = (is_cut and is_unspaced_start(content[begins:])) or any(
        map(is_unspaced, content.decode(errors="ignore"))
    )
    return PieceKind.UNSPACED if stands_alone else PieceKind.CONTINUATION


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
