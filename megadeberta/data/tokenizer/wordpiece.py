"""WordPiece, as BERT, CamemBERTaV2 and some Japanese DeBERTas have it: ``vocab.txt``, or one file."""

from pathlib import Path

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers

from megadeberta.data.tokenizer.library import LibraryTokenizer
from megadeberta.data.tokenizer.pieces import SPECIAL_PIECES, WORD_BOUNDARY, PieceKind, kind_of_text
from megadeberta.errors import DataError

CONTINUES = "##"
_UNKNOWN = SPECIAL_PIECES[3]


class WordPieceTokenizer(LibraryTokenizer):
    """Words are cut from the left into the longest entries; a word that cannot be is [UNK]."""

    kind = "wordpiece"
    model_type = "WordPiece"

    def kind_of(self, text: str) -> PieceKind:
        if text.startswith("[unused") and text.endswith("]"):
            return PieceKind.SPECIAL
        found = kind_of_text(WORD_BOUNDARY + text.removeprefix(CONTINUES))
        continues = text.startswith(CONTINUES) and found == PieceKind.WORD_START
        return PieceKind.CONTINUATION if continues else found

    def piece(self, token_id: int) -> str:
        text = super().piece(token_id)
        if token_id in self._special:
            return text
        return text.removeprefix(CONTINUES) if text.startswith(CONTINUES) else WORD_BOUNDARY + text


def read_wordpiece(vocabulary: Path, *, lowercase: bool, strip_accents: bool | None, split_chinese: bool) -> Tokenizer:
    """A tokenizer of BERT's kind around the entries of a file, one a line.

    Args:
        strip_accents: None = as ``lowercase``.

    Raises:
        DataError: the file cannot be read, or has no [UNK].
    """
    try:
        model = models.WordPiece.from_file(str(vocabulary), unk_token=_UNKNOWN)
    except Exception as error:  # the library raises Exception itself
        raise DataError(f"{vocabulary}: not a vocabulary of one entry a line ({error}); give another") from None
    return bert_like(model, lowercase=lowercase, strip_accents=strip_accents, split_chinese=split_chinese)


def is_lowercase(vocabulary: Path) -> bool:
    """Whether no entry but the special ones has a capital letter, as where all text is put into lower case first.

    Raises:
        DataError: the file is no text.
    """
    try:
        entries = vocabulary.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{vocabulary}: cannot be read as text ({error}); give a file of one entry a line") from None
    return not any(map(str.isupper, "".join(entry for entry in entries if not entry.startswith("["))))


def bert_like(
    model: models.WordPiece, *, lowercase: bool, strip_accents: bool | None = None, split_chinese: bool = True
) -> Tokenizer:
    """A tokenizer that cuts text as BERT does, around a model."""
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = normalizers.BertNormalizer(
        clean_text=True, handle_chinese_chars=split_chinese, strip_accents=strip_accents, lowercase=lowercase
    )
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece(prefix=CONTINUES, cleanup=False)
    return tokenizer
