"""How well vocabularies fit a text that they were not trained on. E entries of a vocabulary."""

import itertools
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from megadeberta.data.tokenizer import PieceKind, VocabularyTokenizer
from megadeberta.errors import DataError

_BATCH_CHARACTERS, _TEXTS_AT_ONCE = 1 << 20, 1 << 14


@dataclass
class TextFacts:
    """What is counted of the text itself."""

    documents: int = 0
    bytes: int = 0
    words: Counter[str] = field(default_factory=Counter)
    """How often each occurs; a word is what stands between spaces, as in the report of ``prep``."""
    characters: Counter[str] = field(default_factory=Counter)
    """All but spaces."""

    def add(self, text: str) -> None:
        """Count a document."""
        self.documents += 1
        self.bytes += len(text.encode())
        self.words.update(text.split())
        self.characters.update(character for character in text if not character.isspace())


@dataclass(frozen=True)
class Fit:
    """One vocabulary on the text. Lower is better for the first three, higher for the next three."""

    tokens_per_word: float
    unknown_tokens: float
    """Fraction of the tokens that are [UNK]."""
    uncovered_characters: float
    """Fraction of the characters, spaces left out, that are unknown alone."""
    bytes_per_token: float
    whole_words: float
    """Fraction of the words, each as often as it occurs, that are one token."""
    entries_used: float
    """Fraction of the entries, special ones left out, that occur."""
    entries: int
    tokens: int
    kind: str


def compare_tokenizers(tokenizers: Sequence[VocabularyTokenizer], texts: Iterable[str]) -> tuple[TextFacts, list[Fit]]:
    """Encode a text with each vocabulary.

    Raises:
        DataError: the text has no word.
    """
    facts = TextFacts()
    counts = [np.zeros(tokenizer.vocab_size_needed, np.int64) for tokenizer in tokenizers]  # [E] each
    for batch in _batches(texts):
        for text in batch:
            facts.add(text)
        for tokenizer, seen in zip(tokenizers, counts, strict=True):
            ids = np.concatenate(tokenizer.encode_batch(batch))
            seen += np.bincount(ids, minlength=len(seen))
    if not facts.words:
        raise DataError("--text: there is no word in it; give text that the vocabularies were not trained on")
    return facts, [_fit(tokenizer, seen, facts) for tokenizer, seen in zip(tokenizers, counts, strict=True)]


def _batches(texts: Iterable[str]) -> Iterator[list[str]]:
    batch: list[str] = []
    size = 0
    for text in texts:
        batch.append(text)
        size += len(text)
        if size >= _BATCH_CHARACTERS:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _fit(tokenizer: VocabularyTokenizer, seen: np.ndarray, facts: TextFacts) -> Fit:
    tokens, words = int(seen.sum()), facts.words.total()
    ordinary = tokenizer.piece_kinds() != PieceKind.SPECIAL
    unknown = _encoded(tokenizer, facts.characters, lambda ids: tokenizer.unk_id in ids)
    # Behind another word, as most words of a text stand.
    before = len(tokenizer.encode("a"))
    whole = _encoded(
        tokenizer,
        {f"a {word}": number for word, number in facts.words.items()},
        lambda ids: len(ids) == before + 1 and ids[-1] != tokenizer.unk_id,
    )
    return Fit(
        tokens_per_word=tokens / words,
        unknown_tokens=int(seen[tokenizer.unk_id]) / max(1, tokens),
        uncovered_characters=unknown / max(1, facts.characters.total()),
        bytes_per_token=facts.bytes / max(1, tokens),
        whole_words=whole / words,
        entries_used=int(np.count_nonzero(seen[ordinary])) / max(1, int(np.count_nonzero(ordinary))),
        entries=tokenizer.num_pieces,
        tokens=tokens,
        kind=tokenizer.kind,
    )


def _encoded(tokenizer: VocabularyTokenizer, counted: Mapping[str, int], holds: Callable[[np.ndarray], bool]) -> int:
    """How many of these texts, each as often as it is counted, have ids for which ``holds``."""
    total = 0
    entries = iter(counted.items())
    while block := list(itertools.islice(entries, _TEXTS_AT_ONCE)):
        encoded = tokenizer.encode_batch([text for text, _ in block])
        total += sum(number for (_, number), ids in zip(block, encoded, strict=True) if holds(ids))
    return total
