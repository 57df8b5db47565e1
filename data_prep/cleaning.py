"""What is taken out of every text, whatever it came from."""

import re

# C0 and C1 controls except those that str.split takes as whitespace, and the byte order mark inside text.
_CONTROL = re.compile("[\x00-\x08\x0e-\x1b\x7f-\x84\x86-\x9f\ufeff]")


def clean(text: str) -> str:
    """Remove control characters, collapse whitespace to single spaces, strip the ends; twice is the same as once.

    Unicode normalisation is left to the vocabulary (SentencePiece's nmt_nfkc), so that the same text typed into a
    trained model meets the same rule.
    """
    # A printable text has no whitespace but the space; most lines end here.
    if text.isprintable() and "  " not in text:
        return text.strip(" ")
    return " ".join(_CONTROL.sub("", text).split())
