"""``tokenizer.json``: a SentencePiece vocabulary for the tokenizers library, with SentencePiece's own ids.

transformers' tokenizer class for these models throws the file's character map away; a plain
``PreTrainedTokenizerFast`` uses the JSON as it is.
"""

import json
import unicodedata
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, normalizers, pre_tokenizers, processors
from tokenizers.models import Unigram

from megadeberta.convert.sentencepiece_file import MASK, read_unigram_pieces
from megadeberta.data.tokenizer import CLS_ID, SEP_ID, SPECIAL_PIECES, UNK_ID, WORD_BOUNDARY

TOKENIZER_JSON = "tokenizer.json"
TOKENIZER_CONFIG = "tokenizer_config.json"

_BLOCKER = "\ufdd0"
"""A noncharacter, in the text only while NFC runs: no mark is reordered or composed across it."""


def build_tokenizer(sentencepiece_model: Path) -> Tokenizer:
    """The SentencePiece model as a fast tokenizer; [MASK] is added behind the pieces.

    Text between special tokens is cut like the middle of a sentence: only the start of the whole text, or a space,
    opens a word, so what stands right behind ``[MASK]`` continues it, as it does in the masked training data.

    Raises:
        DataError: not a model made with the special ids of this package, or with options no JSON can express.
    """
    unigram = read_unigram_pieces(sentencepiece_model)
    tokenizer = Tokenizer(Unigram(unigram.pieces, unk_id=UNK_ID, byte_fallback=False))
    tokenizer.normalizer = _normalizer(unigram.charsmap)
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(replacement=WORD_BOUNDARY, prepend_scheme="first")
    tokenizer.decoder = decoders.Metaspace(replacement=WORD_BOUNDARY, prepend_scheme="first")
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


def write_tokenizer(sentencepiece_model: Path, folder: Path, *, max_length: int) -> None:
    """Write ``tokenizer.json`` and ``tokenizer_config.json``.

    Args:
        max_length: longest sequence of the model; transformers warns above it.
    """
    pad, cls, sep, unk = SPECIAL_PIECES
    build_tokenizer(sentencepiece_model).save(str(folder / TOKENIZER_JSON))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": max_length,
        "model_input_names": ["input_ids", "token_type_ids", "attention_mask"],
        "clean_up_tokenization_spaces": False,
        "padding_side": "right",
        "truncation_side": "right",
        "pad_token": pad,
        "cls_token": cls,
        "bos_token": cls,
        "sep_token": sep,
        "eos_token": sep,
        "unk_token": unk,
        "mask_token": MASK,
    }
    text = json.dumps(config, indent=2, ensure_ascii=False) + "\n"
    (folder / TOKENIZER_CONFIG).write_text(text, encoding="utf-8")


def _normalizer(charsmap: bytes) -> normalizers.Normalizer:
    """SentencePiece's normalisation, step by step.

    SentencePiece replaces the longest match at every place. ``Precompiled`` looks at one grapheme, or at single
    characters when the grapheme is long, and takes the shortest match: it loses the second mark of a decomposed
    Vietnamese letter and does not compose decomposed Hangul and kana. NFC before and after it composes them; but NFC
    also sorts marks, which SentencePiece does not, so marks of other scripts than Latin, Greek and Cyrillic are kept
    apart while it runs.
    """
    steps: list[normalizers.Normalizer] = []
    if charsmap:
        marks = _reordered_marks()
        between_marks = f"(?<=[{marks}])(?=[{marks}])"
        # SentencePiece does not compose a whole syllable with a compatibility consonant behind it.
        behind_syllable = "(?<=[\uac00-\ud7a3])(?=[\u11a8-\u11c2])"
        steps += _guarded_nfc(between_marks)
        steps.append(normalizers.Precompiled(charsmap))
        steps += _guarded_nfc(f"{between_marks}|{behind_syllable}")
    steps.append(normalizers.Replace(Regex(" {2,}"), " "))
    # At the end only: a space in front of the text is its first word boundary. Not Strip, which also takes U+0085.
    steps.append(normalizers.Replace(Regex(r" +\z"), ""))
    return normalizers.Sequence(steps)


def _guarded_nfc(borders: str) -> list[normalizers.Normalizer]:
    # The borders look behind: a match at the very start of the text would crash the library.
    return [
        normalizers.Replace(Regex(borders), _BLOCKER),
        normalizers.NFC(),
        normalizers.Replace(_BLOCKER, ""),
    ]


def _reordered_marks() -> str:
    """Body of a character class: marks that NFC sorts and that never compose with each other in what people write.

    Combining classes of old characters are stable by Unicode's policy; the upper bound ends below the planes whose
    contents still grow.
    """
    composing = [(0x0300, 0x036F), (0x1AB0, 0x1AFF), (0x1DC0, 0x1DFF), (0x20D0, 0x20FF), (0x3099, 0x309A)]
    marks = (
        code
        for code in range(0x0300, 0x30000)
        if unicodedata.combining(chr(code)) and not any(low <= code <= high for low, high in composing)
    )
    ranges: list[list[int]] = []
    for code in marks:
        if ranges and ranges[-1][1] == code - 1:
            ranges[-1][1] = code
        else:
            ranges.append([code, code])
    return "".join(chr(low) if low == high else f"{chr(low)}-{chr(high)}" for low, high in ranges)
