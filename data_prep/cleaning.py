"""What is taken out of every text, whatever it came from."""

import re

# C0 and C1 controls except those that str.split takes as whitespace, and the byte order mark inside text.
_CONTROL = re.compile("[\x00-\x08\x0e-\x1b\x7f-\x84\x86-\x9f\ufeff]")

_VISIBLE = bytes(range(0x20, 0x7F))
_MOST_BYTES = 1.25
"""Bytes per character of text that is nearly all ASCII."""


def clean(text: str) -> str:
    """Remove control characters, collapse whitespace to single spaces, strip the ends; twice is the same as once.

    Unicode normalisation is left to the vocabulary (SentencePiece's nmt_nfkc), so that the same text typed into a
    trained model meets the same rule.
    """
    # Most whitespace that is not a single space is at line ends: joining lines costs a quarter of splitting at words.
    if "\n" in text:
        text = " ".join([stripped for line in text.split("\n") if (stripped := line.strip(" "))])
    # Nearly all texts end here.
    if _is_plain(text):
        return text.strip(" ")
    if _CONTROL.search(text):
        text = _CONTROL.sub("", text)
    return " ".join(text.split())


def _is_plain(text: str) -> bool:
    """Whether a text is printable, so that it has no whitespace but the space, and has no two spaces together."""
    # Bytes are searched in half the time of characters, and of most text few are left to look at.
    content = text.encode("utf-8", "surrogatepass")
    if len(content) <= _MOST_BYTES * len(text):
        text = content.translate(None, _VISIBLE).decode("utf-8", "surrogatepass")
    return text.isprintable() and b"  " not in content
