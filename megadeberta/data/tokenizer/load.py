"""Tokenizers of every kind, told apart by what a file or a folder holds."""

import functools
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from megadeberta.config.set_files import TOKENIZER_FILE, TOKENIZER_FOLDER, TOKENIZER_JSON
from megadeberta.data.tokenizer.base import VocabularyTokenizer, check_expected
from megadeberta.data.tokenizer.pieces import CLS_ID, MASK, SEP_ID, SPECIAL_PIECES
from megadeberta.data.tokenizer.sentencepiece_model import SentencePieceTokenizer
from megadeberta.errors import DataError
from megadeberta.storage import pointer_note

VOCAB_JSON, MERGES, VOCAB_TXT = "vocab.json", "merges.txt", "vocab.txt"
_ADDED = "added_tokens.json"
"""Beside ``spm.model``, as transformers wrote it before it had ``tokenizer.json``."""
_OTHERS = (VOCAB_JSON, VOCAB_TXT)
_MICROSOFT_BPE = "bpe_encoder.bin"
READABLE = f"{TOKENIZER_FILE}, {TOKENIZER_JSON}, {VOCAB_JSON} with {MERGES}, or {VOCAB_TXT}"


def load_tokenizer(path: Path, *, expected_sha256: str | None = None) -> VocabularyTokenizer:
    """Read and validate a tokenizer.

    Args:
        path: a file: of SentencePiece, of the ``tokenizers`` library (JSON), vocab.json beside merges.txt, or
            vocab.txt; or a folder that holds one of them, in this order.
        expected_sha256: of the tokenizer that token files were made with; any other is refused.

    Raises:
        DataError: missing, damaged, not the expected one, of no kind that is read, or with other special tokens.
    """
    if path.is_dir():
        path = _in_folder(path)
    if path.name == _MICROSOFT_BPE:
        raise DataError(_of_microsoft(path))
    if note := pointer_note(path):
        raise DataError(note)
    if path.name == VOCAB_TXT:
        found: VocabularyTokenizer = _wordpiece(path)
    elif path.name == VOCAB_JSON and (path.parent / MERGES).is_file():
        found = _byte_bpe(path)
    elif _starts_as_json(path):
        found = _library(path)
    else:
        return SentencePieceTokenizer.load(path, expected_sha256=expected_sha256)
    check_expected(path, found.sha256, expected_sha256)
    return found


@functools.lru_cache(maxsize=8)
def sequence_marks(path: Path) -> tuple[int, int]:
    """Ids of [CLS] and [SEP] in the sequences of token files made with a tokenizer.

    Raises:
        DataError: see ``load_tokenizer``.
    """
    if not _starts_as_json(path):
        return CLS_ID, SEP_ID
    tokenizer = load_tokenizer(path)
    return tokenizer.cls_id, tokenizer.sep_id


def find_tokenizer(folder: Path) -> Path | None:
    """The tokenizer in a folder of weights, published or ours; None where it has none.

    Of several files it is the first that is read, unless tokens were added that only ``tokenizer.json`` has.

    Raises:
        DataError: the only one is Microsoft's pickle, which is not read, or tokens were added that none has.
    """
    names = (TOKENIZER_FILE, TOKENIZER_JSON, *_OTHERS)
    found = next((folder / name for name in names if (folder / name).is_file()), None)
    if found is not None and found.name != TOKENIZER_JSON and (added := _added_beside(found)):
        if not added.keys() <= _added_in(folder / TOKENIZER_JSON).keys():
            raise DataError(_without_added(found, added))
        found = folder / TOKENIZER_JSON
    if found is None and (folder / _MICROSOFT_BPE).is_file():
        raise DataError(_of_microsoft(folder / _MICROSOFT_BPE))
    return found


def _added_beside(path: Path) -> dict[str, int]:
    """Tokens that other files add to a vocabulary without added tokens, or put elsewhere, and their ids."""
    added = _added_in(path.with_name(TOKENIZER_JSON)) | _added_in(path.with_name(_ADDED))
    if added.keys() <= {*SPECIAL_PIECES}:
        return {}
    tokenizer = load_tokenizer(path)
    beyond = {token: token_id for token, token_id in added.items() if token_id >= tokenizer.num_pieces}
    return {token: token_id for token, token_id in beyond.items() if (token, token_id) != (MASK, tokenizer.mask_id)}


def _added_in(path: Path) -> dict[str, int]:
    """Added tokens of a ``tokenizer.json`` or ``added_tokens.json``; none of a file that is missing or no such file."""
    try:
        values = json.loads(path.read_bytes())
        if path.name == TOKENIZER_JSON:
            return {token["content"]: token["id"] for token in values["added_tokens"]}
        return {token: int(token_id) for token, token_id in values.items()}
    except (OSError, ValueError, RecursionError, LookupError, TypeError, AttributeError):
        return {}


def _without_added(path: Path, added: Mapping[str, int]) -> str:
    first, *others = added
    more = f" and {len(others)} more" if others else ""
    folder = str(path.parent)
    return (
        f"{folder}: {_ADDED} has {first!r}{more}, which {path.name} has not; write the {TOKENIZER_JSON} that has all, "
        f"in Python: `from transformers import AutoTokenizer`, "
        f"`AutoTokenizer.from_pretrained({folder!r}).save_pretrained({folder!r})`"
    )


def _of_microsoft(path: Path) -> str:
    return (
        f"{path}: is Microsoft's pickle of GPT-2's vocabulary, which is not read; put {VOCAB_JSON} and {MERGES} of the "
        f"same model beside it: `hf download microsoft/deberta-base {VOCAB_JSON} {MERGES} --local-dir {path.parent}`"
    )


def _in_folder(folder: Path) -> Path:
    found = find_tokenizer(folder)
    if found is None:
        inside = folder / TOKENIZER_FOLDER
        hint = f"did you mean {inside}?" if inside.is_dir() else "name the file"
        raise DataError(f"the folder {folder} holds no tokenizer: none of {READABLE}; {hint}")
    return found


def _starts_as_json(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            return file.read(64).lstrip()[:1] == b"{"
    except OSError:
        return False  # SentencePiece's reader says what is wrong


def _library(path: Path) -> VocabularyTokenizer:
    from tokenizers import Tokenizer

    from megadeberta.data.tokenizer.byte_bpe import ByteBpeTokenizer
    from megadeberta.data.tokenizer.library import is_prepared
    from megadeberta.data.tokenizer.unigram_json import UnigramJsonTokenizer
    from megadeberta.data.tokenizer.wordpiece import WordPieceTokenizer

    content = path.read_bytes()
    try:
        values = json.loads(content)
        tokenizer = Tokenizer.from_buffer(content)
    except (ValueError, RecursionError, Exception) as error:  # the library raises Exception itself
        raise DataError(f"{path}: not a {TOKENIZER_JSON}, or it is damaged ({error}); give {READABLE}") from None
    kind = values["model"].get("type")
    if kind == "BPE" and "ByteLevel" not in json.dumps([values.get("pre_tokenizer"), values.get("decoder")]):
        kind = "BPE without byte level"
    kinds = {found.model_type: found for found in (ByteBpeTokenizer, WordPieceTokenizer, UnigramJsonTokenizer)}
    if kind not in kinds:
        raise DataError(
            f"{path}: a tokenizer of kind {kind}, which is not trained on; give a byte-level BPE, WordPiece or unigram "
            f"{TOKENIZER_JSON}, or the {TOKENIZER_FILE} of a SentencePiece unigram model"
        )
    return kinds[kind](path, tokenizer, content if is_prepared(values) else None)


def _byte_bpe(path: Path) -> VocabularyTokenizer:
    from megadeberta.data.tokenizer.byte_bpe import ByteBpeTokenizer, read_byte_bpe

    settings = _settings(path.parent)
    prefix_space = settings.get("add_prefix_space") is True
    return ByteBpeTokenizer(path, read_byte_bpe(path, path.parent / MERGES, add_prefix_space=prefix_space))


def _wordpiece(path: Path) -> VocabularyTokenizer:
    from megadeberta.data.tokenizer.wordpiece import WordPieceTokenizer, is_lowercase, read_wordpiece

    settings = _settings(path.parent)
    if settings.get("word_tokenizer_type") == "mecab" or settings.get("subword_tokenizer_type") == "character":
        raise DataError(
            f"{path}: its tokenizer_config.json asks for MeCab or for single characters, which no tokenizer.json can "
            "express; cut the text into words beforehand, and give the vocabulary without that file"
        )
    tokenizer = read_wordpiece(
        path,
        lowercase=settings.get("do_lower_case", is_lowercase(path)) is True,
        strip_accents=settings.get("strip_accents"),
        split_chinese=settings.get("tokenize_chinese_chars", True) is not False,
    )
    return WordPieceTokenizer(path, tokenizer)


def _settings(folder: Path) -> dict[str, Any]:
    path = folder / "tokenizer_config.json"
    if not path.is_file():
        return {}
    try:
        values = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{path}: cannot be read as JSON ({error}); mend it or take it away") from None
    return values if isinstance(values, dict) else {}
