"""A finished set of shards that tests of every package share."""

from pathlib import Path

import pytest
from rich.console import Console

from megadeberta.data_prep.options import PrepOptions, VocabularyOptions
from megadeberta.data_prep.prepare import prepare

SOTU = Path(__file__).parent / "data" / "sotu.txt"
VOCAB_SIZE = 1000


def prepared_corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Run prep on ``sotu.txt`` with a 1000-piece vocabulary; return the folder with train, valid and tokenizer."""
    output = tmp_path_factory.mktemp("prepared") / "sotu"
    options = PrepOptions(corpora=(SOTU,), output=output, vocabulary=VocabularyOptions(size=VOCAB_SIZE))
    # No plot: matplotlib would cost every test session half a second.
    prepare(options, console=Console(quiet=True), plot=lambda folder, lengths: None)
    return output
