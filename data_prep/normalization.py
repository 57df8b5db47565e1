"""Tables of character replacements for a vocabulary that is trained here."""

from typing import Any

import sentencepiece

from megadeberta.data_prep.options import VocabularyOptions

_ZWNJ = "\u200c"


def normalization(options: VocabularyOptions) -> dict[str, Any]:
    """The arguments of SentencePiece's trainer that say which table it takes."""
    if not options.keep_zwnj:
        return {"normalization_rule_name": str(options.normalizer)}
    usual = sentencepiece.SentencePieceNormalizer(rule_name=str(options.normalizer))
    rules = [(old, new) for old, new in usual.decompile() if old != _ZWNJ]
    return {"normalizer": sentencepiece.SentencePieceNormalizer(norm_map=rules)}
