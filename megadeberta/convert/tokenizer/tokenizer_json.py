"""``tokenizer.json``: a SentencePiece vocabulary for the tokenizers library, with SentencePiece's own ids.

transformers' tokenizer class for these models throws the file's character map away; a plain
``PreTrainedTokenizerFast`` uses the JSON as it is.
"""

import json
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, pre_tokenizers, processors
from tokenizers.models import Unigram

from megadeberta.convert.tokenizer.normalizer import sentencepiece_normalizer
from megadeberta.convert.tokenizer.sentencepiece_file import read_unigram_pieces
from megadeberta.data.tokenizer import CLS_ID, MASK, SEP_ID, SPECIAL_PIECES, UNK_ID, WORD_BOUNDARY

TOKENIZER_JSON = "tokenizer.json"
TOKENIZER_CONFIG = "tokenizer_config.json"


def build_tokenizer(sentencepiece_model: Path) -> Tokenizer:
    """The SentencePiece model as a fast tokenizer; [MASK] is added behind the pieces.

    Text between special tokens is tokenized like the middle of a sentence: only the start of the whole text, or a
    space, opens a word, so what directly follows ``[MASK]`` continues it, as it does in the masked training data.

    Raises:
        DataError: not a model made with the special ids of this package, or with options no JSON can express.
    """
    unigram = read_unigram_pieces(sentencepiece_model)
    tokenizer = Tokenizer(Unigram(unigram.pieces, unk_id=UNK_ID, byte_fallback=False))
    tokenizer.normalizer = sentencepiece_normalizer(unigram.charsmap)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Metaspace(replacement=WORD_BOUNDARY, prepend_scheme="first"),
            # SentencePiece never reads a control piece out of text. The library's model would, in what normalisation
            # makes of full-width "[CLS]": split it in two.
            pre_tokenizers.Split(Regex(r"\[(?=(?:PAD|CLS|SEP|UNK)\])"), "merged_with_previous"),
        ]
    )
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
