"""Does a vocabulary belong to these weights?"""

from pathlib import Path

from megadeberta.config.model import ModelConfig
from megadeberta.data.tokenizer import load_tokenizer
from megadeberta.errors import CheckpointError


def check_tokenizer_fits(spm: Path, config: ModelConfig) -> None:
    """Refuse a vocabulary that is larger than the word table; a file that is not there is no mistake.

    Raises:
        CheckpointError: it is the tokenizer of other weights.
        DataError: it is no tokenizer with the special ids of these models, or none that can be exported.
    """
    if not spm.is_file():
        return
    tokenizer = load_tokenizer(spm)
    tokenizer.check_exportable()
    needed = tokenizer.vocab_size_needed
    if needed > config.vocab_size:
        raise CheckpointError(
            f"{spm}: needs {needed} rows with [MASK], the word table has {config.vocab_size}; it is not the tokenizer "
            f"of these weights, or tokens were added to it without rows, which `convert import --tokenizer {spm}` draws"
        )
