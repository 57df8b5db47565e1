"""Joining the parts into the train and valid shards. D documents over all parts, K validation documents."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from megadeberta.data.files_writer import SetWriter
from megadeberta.data_prep.machines import JoinedParts
from megadeberta.data_prep.options import SplitOptions
from megadeberta.data_prep.parts import PartStore
from megadeberta.errors import DataError, StorageError
from megadeberta.storage import free_bytes

_LARGEST_FRACTION, _TIMES_ASKED, _FEW_TOKENS = 0.05, 10, 1 << 16
"""More of the tokens than this, and than so many times what was asked, is no accident of a small corpus."""


@dataclass(frozen=True)
class SplitRule:
    """A train part's document is for validation when its content key is at most ``largest_valid_key``.

    Keys are hashes, so the choice is random over the corpus, does not depend on the order of files, and keeps equal
    documents on one side.
    """

    largest_valid_key: int = -1

    def is_valid(self, keys: np.ndarray) -> np.ndarray:
        """``[D]`` booleans."""
        if self.largest_valid_key < 0:
            return np.zeros(len(keys), dtype=bool)
        return keys <= np.uint64(self.largest_valid_key)


def choose_split(keys: np.ndarray, lengths: np.ndarray, options: SplitOptions) -> SplitRule:
    """The rule that sets apart the ``options.count`` documents with the smallest keys, and their duplicates.

    Args:
        keys: ``[D]`` content keys of all documents.
        lengths: ``[D]`` their tokens.

    Raises:
        DataError: nothing would be left to train on, or far more tokens go to validation than the fraction asks.
    """
    count = options.count(len(keys))
    if count == 0:
        return SplitRule()
    rule = SplitRule(int(np.partition(keys, count - 1)[count - 1])) if count < len(keys) else None
    if rule is None or rule.is_valid(keys).all():
        raise DataError(
            f"the corpus has {len(keys)} documents ({len(np.unique(keys))} different) and {count} would go to "
            "validation: none is left to train on; use --valid-fraction=0, give --valid, or cut documents finer "
            "with --document-per"
        )
    held_out, total = int(lengths[rule.is_valid(keys)].sum()), int(lengths.sum())
    allowed = max(_LARGEST_FRACTION, _TIMES_ASKED * options.fraction)
    if options.documents is None and held_out > max(_FEW_TOKENS, allowed * total):
        raise DataError(
            f"{held_out / total:.0%} of the tokens would go to validation ({held_out:,} in {count} of {len(keys)} "
            f"documents) where --valid-fraction={options.fraction:g}: the documents are too large to hold out so few; "
            "cut them finer, give --valid, or say how many with --valid-documents"
        )
    return rule


def check_room(folder: Path, needed: int) -> None:
    """Refuse to start a merge that cannot fit.

    Raises:
        StorageError: with the bytes needed and free.
    """
    free = free_bytes(folder)
    if needed > free:
        raise StorageError(
            f"cannot write the shards into {folder}: {needed} bytes needed, {free} free; make room, then run "
            "the same command again: finished parts are kept"
        )


def merge_parts(
    store: PartStore | JoinedParts,
    parts: list[int],
    *,
    train: SetWriter,
    valid: SetWriter | None,
    rule: SplitRule,
    kept: Callable[[int], np.ndarray | slice],
    advance: Callable[[int], None],
) -> None:
    """Append the documents of ``parts``, in order, to ``train`` or, where ``rule`` says so and it exists, to ``valid``.

    Args:
        kept: which documents of a part are not left out: ``[D]`` booleans, or a slice of all.
        advance: called with the number of tokens after each group of documents.
    """
    for number in parts:
        documents = store.documents(number)
        is_kept = np.zeros(len(documents), dtype=bool)
        is_kept[kept(number)] = True
        is_valid = is_kept & rule.is_valid(documents["key"]) & (valid is not None)
        is_train = is_kept & ~is_valid
        for group, tokens in store.token_groups(number):
            lengths = documents["length"][group]
            for writer, chosen in ((train, is_train[group]), (valid, is_valid[group])):
                if writer is not None and chosen.any():
                    writer.add_documents(_tokens_of(chosen, tokens, lengths), lengths[chosen])
            advance(len(tokens))


def _tokens_of(chosen: np.ndarray, tokens: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """The tokens of some documents, copied in runs of neighbours, or as they are where all are chosen.

    Args:
        chosen: ``[D]`` booleans.
        tokens: ``[T]`` of all documents back to back, ``lengths`` (``[D]``) of each.
    """
    if chosen.all():
        return tokens
    ends = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])
    borders = np.flatnonzero(np.diff(chosen, prepend=False, append=False))  # of runs: first, and one past the last
    return np.concatenate([tokens[ends[first] : ends[last]] for first, last in borders.reshape(-1, 2)])
