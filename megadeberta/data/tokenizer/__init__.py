"""Tokenizers: ids of the special tokens, and for every vocabulary entry what masking needs to know of it."""

from megadeberta.data.tokenizer.pieces import (
    CLS_ID,
    MASK,
    PAD_ID,
    SEP_ID,
    SPECIAL_PIECES,
    UNK_ID,
    WORD_BOUNDARY,
    PieceKind,
    starts_word,
)
from megadeberta.data.tokenizer.sentencepiece_model import SentencePieceTokenizer

__all__ = [
    "CLS_ID",
    "MASK",
    "PAD_ID",
    "SEP_ID",
    "SPECIAL_PIECES",
    "UNK_ID",
    "WORD_BOUNDARY",
    "PieceKind",
    "SentencePieceTokenizer",
    "starts_word",
]
