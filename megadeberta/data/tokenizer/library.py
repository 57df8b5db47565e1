"""Tokenizers of the ``tokenizers`` library: one ``tokenizer.json``, read by the same code here and in transformers."""

import hashlib
import json
import os
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from tokenizers import AddedToken, Tokenizer, processors

from megadeberta.config.set_files import TOKENIZER_JSON
from megadeberta.data.tokenizer.base import VocabularyTokenizer
from megadeberta.data.tokenizer.pieces import MASK, PAD_ID, SPECIAL_PIECES, PieceKind
from megadeberta.errors import DataError

# Workers are processes; the library's threads would take the cores of the others.
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

ALL_SPECIAL = (*SPECIAL_PIECES, MASK)


class LibraryTokenizer(VocabularyTokenizer):
    """A ``tokenizer.json`` with the five special tokens of these models."""

    file_name = TOKENIZER_JSON
    model_type: ClassVar[str]
    """What the file calls the model."""

    def __init__(self, path: Path, tokenizer: Tokenizer, content: bytes | None = None) -> None:
        """``content``: of a file that is as ``prepared`` makes it; None for a tokenizer that came otherwise.

        Raises:
            DataError: special tokens are missing, or [PAD] is not 0.
        """
        ids = special_ids(tokenizer, path)
        if content is None:
            content = prepared(tokenizer, ids)
        self.path, self.content = path, content
        self.sha256 = hashlib.sha256(content).hexdigest()
        self.cls_id, self.sep_id, self.unk_id, self.mask_id = (ids[name] for name in ALL_SPECIAL[1:])
        vocabulary = tokenizer.get_vocab(with_added_tokens=True)
        self.num_pieces = max(vocabulary.values()) + 1
        self._texts = {token_id: text for text, token_id in vocabulary.items()}
        added = tokenizer.get_added_tokens_decoder()
        self._special = {token_id for token_id, token in added.items() if token.special} | set(ids.values())
        self._tokenizer = Tokenizer.from_buffer(_for_text(content))
        self._tokenizer.encode_special_tokens = True  # the names of the five in a corpus are text

    def encode_batch(self, texts: Sequence[str]) -> list[NDArray[np.int32]]:
        found = self._tokenizer.encode_batch_fast(texts, add_special_tokens=False)
        return [np.array(encoding.ids, np.int32) for encoding in found]

    def decode(self, ids: list[int]) -> str:
        return self._tokenizer.decode(ids, skip_special_tokens=True)

    def piece(self, token_id: int) -> str:
        return self._texts.get(token_id, "")

    def piece_kinds(self) -> NDArray[np.uint8]:
        return np.array([self._kind(token_id) for token_id in range(self.vocab_size_needed)], np.uint8)

    def _kind(self, token_id: int) -> PieceKind:
        if token_id in self._special or token_id not in self._texts:
            return PieceKind.SPECIAL
        return self.kind_of(self._texts[token_id])

    @abstractmethod
    def kind_of(self, text: str) -> PieceKind:
        """The kind of an ordinary entry."""

    def check_exportable(self) -> None:
        """Nothing to check: the export has this very file."""

    def fast(self) -> Tokenizer:
        return Tokenizer.from_buffer(self.content)

    def is_toss_up(self, ids: Sequence[int], other_ids: Sequence[int]) -> bool:
        return False

    def listing(self) -> bytes:
        return "".join(f"{self.piece(token_id)}\n" for token_id in range(self.num_pieces)).encode()


def _for_text(content: bytes) -> bytes:
    """The file with none but the five as special tokens: others that were added are found in text, as exports do."""
    values = json.loads(content)
    for token in values["added_tokens"]:
        token["special"] = token["content"] in ALL_SPECIAL
    return json.dumps(values).encode()


def prepared(tokenizer: Tokenizer, ids: Mapping[str, int]) -> bytes:
    """``tokenizer.json`` of a tokenizer: whole texts, with the special tokens and templates of these models."""
    tokenizer.no_truncation()
    tokenizer.no_padding()
    tokenizer.add_special_tokens([AddedToken(name, normalized=False, special=True) for name in ALL_SPECIAL])
    tokenizer.post_processor = template(ids)
    return (tokenizer.to_str(pretty=True) + "\n").encode()


def template(ids: Mapping[str, int]) -> processors.TemplateProcessing:
    """[CLS] A [SEP], and [CLS] A [SEP] B [SEP]."""
    _, cls, sep, *_ = ALL_SPECIAL
    return processors.TemplateProcessing(
        single=f"{cls}:0 $A:0 {sep}:0",
        pair=f"{cls}:0 $A:0 {sep}:0 $B:1 {sep}:1",
        special_tokens=[(cls, ids[cls]), (sep, ids[sep])],
    )


def is_prepared(values: Mapping[str, Any]) -> bool:
    """Whether a parsed ``tokenizer.json`` is as ``prepared`` makes it, by whatever version of the library."""
    special = {token["content"] for token in values.get("added_tokens", ()) if token.get("special")}
    if values.get("truncation") or values.get("padding") or not special.issuperset(ALL_SPECIAL):
        return False
    ids = {token["content"]: token["id"] for token in values["added_tokens"]}
    return values.get("post_processor") == json.loads(template(ids).__getstate__())


def special_ids(tokenizer: Tokenizer, name: Path | str) -> dict[str, int]:
    """Ids of the special tokens.

    Args:
        name: of the tokenizer, for errors.

    Raises:
        DataError: one is missing, or [PAD] is not 0.
    """
    ids = {token: tokenizer.token_to_id(token) for token in ALL_SPECIAL}
    missing = [token for token, token_id in ids.items() if token_id is None]
    if missing:
        raise DataError(
            f"{name}: the vocabulary has no {' '.join(missing)}; a DeBERTa needs {' '.join(ALL_SPECIAL)} under these "
            "names; add them, with a row of the word table each, or train a vocabulary with `megadeberta prep`"
        )
    if ids[SPECIAL_PIECES[0]] != PAD_ID:
        raise DataError(
            f"{name}: [PAD] has id {ids[SPECIAL_PIECES[0]]}, and needs {PAD_ID}; use a vocabulary whose first entry is "
            "[PAD], as those of all published DeBERTas"
        )
    return {token: token_id for token, token_id in ids.items() if token_id is not None}
