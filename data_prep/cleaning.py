"""What is taken out of every text, whatever it came from."""

import re

# C0 and C1 controls except those that str.split takes as whitespace, and the byte order mark inside text.
_CONTROL = re.compile("[\x00-\x08\x0e-\x1b\x7f-\x84\x86-\x9f\ufeff]")


def clean(text: str) -> str:
    """Remove control characters, collapse whitespace to single spaces, strip the ends; twice is the same as once.

    Unicode normalisation is left to the vocabulary (SentencePiece's nmt_nfkc), so that the same text typed into a
    trained model meets the same rule.
    """
    # Most whitespace that is not a single space is at line ends: joining lines costs a quarter of splitting at words.
    if "\n" in text:
        text = " ".join([stripped for line in text.split("\n") if (stripped := line.strip(" "))])
    # A printable text has no whitespace but the space; nearly all texts end here.
    if text.isprintable() and "  " not in text:
        return text.strip(" ")
    if _CONTROL.search(text):
        text = _CONTROL.sub("", text)
    return " ".join(text.split())
