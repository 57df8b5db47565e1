"""Keeping the text of test sets out of a corpus: documents that share a long run of words, or a sentence, with one.

Runs of 13 words are the rule of GPT-3 (Brown et al. 2020, appendix C). R hashes of all test files.
"""

import hashlib
import re
from collections.abc import Iterable
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path
from typing import cast

import numpy as np

from megadeberta.data_prep.options import DecontaminateBy, ReadOptions
from megadeberta.data_prep.shingles import run_hashes, word_hashes
from megadeberta.data_prep.side_texts import read_texts, sources_of
from megadeberta.errors import DataError

RUN_WORDS, SENTENCE_WORDS = 13, 8
"""Length of a run, and of the shortest sentence that is looked for: "I do not know." is in every corpus."""
_SENTENCE_END = re.compile(r"[.!?]+(?=\s|$)|[。！？।॥؟]+")


@dataclass(frozen=True)
class Contamination:
    """What must not be in a document."""

    by: DecontaminateBy
    hashes: np.ndarray
    """``[R]`` uint64, sorted, each once."""
    num_documents: int
    num_too_short: int
    """Test documents without any run or sentence that is long enough: they cannot be found."""

    def is_in(self, text: str) -> bool:
        """Whether a clean document has any of it."""
        found = text_hashes(text, self.by)
        places = np.searchsorted(self.hashes, found)
        places[places == len(self.hashes)] = 0
        return bool((self.hashes[places] == found).any())

    def describe(self) -> str:
        """One line for the screen."""
        unit = f"runs of {RUN_WORDS} words" if self.by is DecontaminateBy.NGRAM else "sentences"
        line = f"test sets: {self.num_documents:,} documents, {len(self.hashes):,} {unit} to keep out"
        if self.num_too_short:
            line += f"; {self.num_too_short:,} documents are too short to be looked for"
        return line


def text_hashes(text: str, by: DecontaminateBy) -> np.ndarray:
    """``[N]`` uint64 of the runs of 13 words, or of the sentences of at least 8 words, of a text."""
    if by is DecontaminateBy.NGRAM:
        return run_hashes(word_hashes(text), RUN_WORDS)
    sentences = [words for part in _SENTENCE_END.split(text) if len(words := word_hashes(part)) >= SENTENCE_WORDS]
    return np.concatenate([np.empty(0, np.uint64), *(run_hashes(words, len(words)) for words in sentences)])


def fingerprint(paths: Iterable[Path], read: ReadOptions) -> tuple[tuple[str, str], ...]:
    """Path and SHA-256 of the files of test sets: what is kept depends on their content.

    Raises:
        DataError: a file cannot be read.
    """
    found = []
    for source in sources_of(paths, read):
        with source.path.open("rb") as file:
            found.append((str(source.path), hashlib.file_digest(cast(BufferedReader, file), "sha256").hexdigest()))
    return tuple(found)


def read_contamination(options: ReadOptions) -> Contamination:
    """Read the test sets with the readers of the corpus.

    Raises:
        DataError: a file cannot be read, or nothing in them is long enough to be looked for.
    """
    by = options.decontaminate_by
    hashes, num_documents, num_too_short = [np.empty(0, np.uint64)], 0, 0
    for text in read_texts([Path(path) for path, _ in options.test_sets], options, option="--decontaminate"):
        found = text_hashes(text, by)
        hashes.append(found)
        num_documents += 1
        num_too_short += len(found) == 0
    found = np.unique(np.concatenate(hashes))
    if len(found) == 0:
        needed = f"{RUN_WORDS} words" if by is DecontaminateBy.NGRAM else f"a sentence of {SENTENCE_WORDS} words"
        raise DataError(
            f"--decontaminate: none of the {num_documents} documents of {options.test_sets[0][0]} has {needed}; check "
            "--text-key and --document-per, which hold for these files too, or use --decontaminate-by"
        )
    return Contamination(by, found, num_documents, num_too_short)
