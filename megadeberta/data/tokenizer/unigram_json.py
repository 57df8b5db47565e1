"""Unigram models of which only the ``tokenizer.json`` is there, as in many folders of fine-tuned models."""

from megadeberta.data.tokenizer.library import LibraryTokenizer
from megadeberta.data.tokenizer.pieces import PieceKind, kind_of_text


class UnigramJsonTokenizer(LibraryTokenizer):
    """Cuts text as transformers does with this file; slower than the ``spm.model`` that it was made from."""

    kind = "unigram"
    model_type = "Unigram"

    def kind_of(self, text: str) -> PieceKind:
        return kind_of_text(text)
