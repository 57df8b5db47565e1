"""The text of ``fill-mask``, checked before torch is loaded."""

from megadeberta.data.tokenizer import MASK
from megadeberta.errors import DataError


def check_has_mask(text: str) -> None:
    """Refuse a text in which there is nothing to predict.

    Raises:
        DataError: it holds no ``[MASK]``.
    """
    if MASK not in text:
        raise DataError(f"the text holds no {MASK}: {text[:60]!r}; write {MASK} where a piece is to be predicted")
