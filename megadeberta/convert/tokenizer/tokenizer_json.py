"""The files from which transformers makes a tokenizer with the ids that a model was trained on.

transformers' tokenizer class for these models throws the file's character map away; a plain
``PreTrainedTokenizerFast`` uses the JSON as it is.
"""

import json
from pathlib import Path

from megadeberta.config.set_files import TOKENIZER_JSON
from megadeberta.data.tokenizer import MASK, SPECIAL_PIECES, load_tokenizer

TOKENIZER_CONFIG = "tokenizer_config.json"


def write_tokenizer(source: Path, folder: Path, *, max_length: int) -> None:
    """Write ``tokenizer.json`` and ``tokenizer_config.json``.

    Args:
        max_length: longest sequence of the model; transformers warns above it.
    """
    pad, cls, sep, unk = SPECIAL_PIECES
    tokenizer = load_tokenizer(source)
    if tokenizer.file_name == TOKENIZER_JSON:
        (folder / TOKENIZER_JSON).write_bytes(tokenizer.content)
    else:
        tokenizer.fast().save(str(folder / TOKENIZER_JSON))
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
