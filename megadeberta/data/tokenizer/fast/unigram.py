"""A SentencePiece unigram vocabulary for the ``tokenizers`` library, with SentencePiece's own ids."""

import re
from collections.abc import Sequence

import numpy as np
from tokenizers import AddedToken, Regex, Tokenizer, decoders, pre_tokenizers, processors
from tokenizers.models import Unigram

from megadeberta.data.tokenizer.fast.normalizer import BORDER, sentencepiece_normalizer
from megadeberta.data.tokenizer.fast.sentencepiece_file import PieceType, UnigramModel
from megadeberta.data.tokenizer.pieces import CLS_ID, MASK, SEP_ID, SPECIAL_PIECES, UNK_ID, WORD_BOUNDARY

_BYTE = ("<", "0", "x", "[0-9A-F]", "[0-9A-F]", ">")
"""The name of a byte."""


def unigram_tokenizer(model: UnigramModel) -> Tokenizer:
    """The model as a fast tokenizer; [MASK] is added behind the pieces unless it is one.

    Text between special tokens is tokenized like the middle of a sentence: only the start of the whole text, or a
    space, opens a word, so what directly follows ``[MASK]`` continues it, as it does in the masked training data.

    Raises:
        DataError: the library has no steps for the normalisation of the model.
    """
    symbols = [text for text in model.texts(PieceType.USER_DEFINED) if text != MASK]
    # An unused piece keeps its id under a name that no text holds.
    names_in_json = (BORDER * (piece.type == PieceType.UNUSED) + piece.text for piece in model.pieces)
    vocabulary = list(zip(names_in_json, _scores(model), strict=True))
    tokenizer = Tokenizer(Unigram(vocabulary, unk_id=UNK_ID, byte_fallback=model.byte_fallback))
    tokenizer.normalizer = sentencepiece_normalizer(model.charsmap, symbols)
    in_text = model.texts(PieceType.NORMAL, PieceType.USER_DEFINED)
    crosses_spaces = any(WORD_BOUNDARY in text[1:] for text in in_text)
    # SentencePiece never reads a control piece or a byte out of text. The library's model would: cut it in two.
    names: list[Sequence[str]] = [
        [re.escape(c) for c in text] for text in model.texts(PieceType.CONTROL, PieceType.UNKNOWN)
    ]
    names += [_BYTE] if model.byte_fallback else []
    cuts = [pre_tokenizers.Split(Regex(_cut(name, in_text)), "merged_with_previous") for name in names]
    words = pre_tokenizers.Metaspace(WORD_BOUNDARY, prepend_scheme="first", split=not crosses_spaces)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([words, *cuts])
    tokenizer.decoder = decoders.Metaspace(WORD_BOUNDARY, prepend_scheme="first")
    if model.byte_fallback:
        tokenizer.decoder = decoders.Sequence([decoders.ByteFallback(), tokenizer.decoder])
    pad, cls, sep, unk = SPECIAL_PIECES
    tokenizer.add_special_tokens(
        [AddedToken(token, normalized=False, special=True) for token in (pad, cls, sep, unk, MASK)]
    )
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{cls}:0 $A:0 {sep}:0",
        pair=f"{cls}:0 $A:0 {sep}:0 $B:1 {sep}:1",
        special_tokens=[(cls, CLS_ID), (sep, SEP_ID)],
    )
    return tokenizer


def _scores(model: UnigramModel) -> list[float]:
    """Of all pieces. SentencePiece gives user-defined ones a score that hardly anything beats."""
    highest = np.float32(max((piece.score for piece in model.pieces if piece.type == PieceType.NORMAL), default=0.0))
    return [
        float(np.float32(len(piece.text.encode())) * highest) - 0.1
        if piece.type == PieceType.USER_DEFINED
        else piece.score * (piece.type == PieceType.NORMAL)  # the library takes the least of all for unknown characters
        for piece in model.pieces
    ]


def _cut(name: Sequence[str], pieces: Sequence[str]) -> str:
    """Pattern of the beginning of a name in text, up to a place that no piece of ``pieces`` goes across.

    Where there is no such place, it is the one that the fewest go across.

    Args:
        name: a pattern for each character.
    """

    def crossing(place: int) -> int:
        both = re.compile(name[place - 1] + name[place])
        return sum(both.search(piece) is not None for piece in pieces)

    place = min(range(1, len(name)), key=crossing)
    return f"{''.join(name[:place])}(?={''.join(name[place:])})"
