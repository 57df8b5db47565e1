"""The text of the tests, vocabularies of it, and a finished set of shards, for tests of every package."""

from collections.abc import Iterable
from pathlib import Path

import pytest
import sentencepiece
from rich.console import Console

from megadeberta.data_prep.options import PrepOptions, VocabularyOptions
from megadeberta.data_prep.prepare import prepare

SOTU = Path(__file__).parent / "data" / "sotu.txt"
NUM_PIECES = 1000
SPECIAL_IDS = {"pad_id": 0, "bos_id": 1, "eos_id": 2, "unk_id": 3}
SPECIAL_NAMES = {"pad_piece": "[PAD]", "bos_piece": "[CLS]", "eos_piece": "[SEP]", "unk_piece": "[UNK]"}


def prepared_corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Run prep on ``sotu.txt`` with a 1000-piece vocabulary; return the folder with train, valid and tokenizer."""
    output = tmp_path_factory.mktemp("prepared") / "sotu"
    options = PrepOptions(corpora=(SOTU,), output=output, vocabulary=VocabularyOptions(size=NUM_PIECES))
    # No plot: nothing here looks at it.
    prepare(options, console=Console(quiet=True), plot=lambda folder, lengths: None)
    return output


def train_vocabulary(path: Path, *, extra: Iterable[str] = (), **options: object) -> Path:
    """Unigram pieces on the test text and ``extra``, every character of which becomes a piece."""
    lines = [line for line in SOTU.read_text(encoding="utf-8").splitlines() if line][:200]
    defaults = {
        "vocab_size": NUM_PIECES,
        "model_type": "unigram",
        **SPECIAL_IDS,
        **SPECIAL_NAMES,
        "character_coverage": 1.0,
        "num_threads": 1,
        "minloglevel": 2,
    }
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([*lines, *extra]), model_prefix=str(path.with_suffix("")), **(defaults | options)
    )
    return path
