"""Tokenizers: ids of the special tokens, and for every vocabulary entry what masking needs to know of it."""

from megadeberta.data.tokenizer.base import VocabularyTokenizer
from megadeberta.data.tokenizer.load import find_tokenizer, load_tokenizer, sequence_marks
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
    "VocabularyTokenizer",
    "find_tokenizer",
    "load_tokenizer",
    "sequence_marks",
    "starts_word",
]
