"""Looking into finished sets: counts, lengths, copies, and what a model would see. D documents, T tokens."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.text import Text

from megadeberta.config.objective import ObjectiveConfig
from megadeberta.data.counter_random import stream_key
from megadeberta.data.indexed import TokenShard
from megadeberta.data.masking import MlmMasker
from megadeberta.data.tokenizer import WORD_BOUNDARY, VocabularyTokenizer
from megadeberta.data_prep.finished_sets import FinishedSet, document_groups, document_keys, document_lengths
from megadeberta.data_prep.progress import Stages
from megadeberta.data_prep.report import describe_lengths

_WIDTH = 50
"""Characters of the longest bar."""


@dataclass(frozen=True)
class ShardStatistics:
    """What one pass over a token file finds."""

    num_documents: int
    num_tokens: int
    copies: int
    """Documents with the same ids as an earlier one."""
    unknown_tokens: int
    used: np.ndarray
    """``[vocabulary]`` occurrences of every id."""
    lengths: np.ndarray
    """``[D]``."""

    def to_json(self) -> dict[str, Any]:
        """Plain numbers."""
        tokens = max(1, self.num_tokens)
        return {
            "documents": self.num_documents,
            "tokens": self.num_tokens,
            "document_tokens": describe_lengths(self.lengths) if self.num_documents else {},
            "copied_documents": self.copies,
            "unknown_fraction": round(self.unknown_tokens / tokens, 6),
            "vocabulary_used": int(np.count_nonzero(self.used)),
        }


def shard_statistics(shard: TokenShard, tokenizer: VocabularyTokenizer, stages: Stages) -> ShardStatistics:
    """Read all tokens once. Memory: 16 bytes per document, and a bounded group of tokens.

    Raises:
        DataError: the file is damaged, or holds ids that the tokenizer has not.
    """
    used = np.zeros(tokenizer.num_pieces, dtype=np.int64)
    keys = np.empty(shard.num_documents, dtype=np.uint64)
    done = 0
    for tokens, lengths in document_groups(shard):
        used += np.bincount(tokens, minlength=len(used))
        keys[done : done + len(lengths)] = document_keys(tokens, lengths)
        done += len(lengths)
        stages.advance(len(tokens))
    keys.sort()
    copies = int(np.count_nonzero(keys[1:] == keys[:-1]))
    return ShardStatistics(
        shard.num_documents, shard.num_tokens, copies, int(used[tokenizer.unk_id]), used, document_lengths(shard)
    )


def set_statistics(one: FinishedSet, stages: Stages) -> dict[str, ShardStatistics]:
    """Of every split.

    Raises:
        DataError: see ``shard_statistics``.
    """
    found = {}
    for split, shard in one.shards.items():
        stages.begin(f"reading {split}", total=shard.num_tokens, unit="Mtokens")
        found[split] = shard_statistics(shard, one.tokenizer, stages)
    return found


def length_bars(lengths: np.ndarray) -> list[str]:
    """A histogram of document lengths ``[D]`` as lines of text; a bin is twice as wide as the one before."""
    if len(lengths) == 0:
        return []
    bins = np.floor(np.log2(np.maximum(lengths, 1))).astype(np.int64)
    counts = np.bincount(bins)
    first = int(np.flatnonzero(counts)[0])
    lines = []
    for number in range(first, len(counts)):
        count, name = int(counts[number]), f"{1 << number:,} to {(2 << number) - 1:,}"
        bar = "█" * max(round(_WIDTH * count / counts.max()), count > 0)
        lines.append(f"{name:>23} {bar} {count:,}")
    return lines


def choose_documents(shard: TokenShard, count: int, seed: int) -> list[int]:
    """Numbers of ``count`` random documents, ascending; another seed gives others."""
    count = min(count, shard.num_documents)
    return sorted(np.random.default_rng(seed).choice(shard.num_documents, count, replace=False).tolist())


def masked_sample(tokenizer: VocabularyTokenizer, tokens: NDArray[np.integer], *, seed: int) -> Text:
    """A document as masked language modelling with the default settings sees it.

    What is to be predicted stands in brackets: what the model sees, and after an arrow what it has to say. On a
    terminal it is coloured too: [MASK] red, a random token yellow, one that is kept green.

    Args:
        tokens: ``[T]``, at least one.
    """
    masker = MlmMasker(ObjectiveConfig(), tokenizer.piece_kinds(), mask_id=tokenizer.mask_id)
    sequence = np.concatenate([[tokenizer.cls_id], tokens, [tokenizer.sep_id]]).astype(np.int64)[None]  # [1, T + 2]
    masked = masker(sequence, np.atleast_1d(stream_key(seed, "inspect", np.array([0]))))
    labels = dict(zip(masked.masked_positions[0].tolist(), masked.masked_labels[0].tolist(), strict=True))
    text = Text()
    for position, token in enumerate(masked.input_ids[0].tolist()):
        label = labels.get(position, 0)
        if position in (0, sequence.shape[1] - 1):
            continue
        piece, is_start = _shown(tokenizer, int(sequence[0, position]))
        if is_start and len(text):
            text.append(" ")
        if not label:
            text.append(piece)
            continue
        color = "red" if token == tokenizer.mask_id else "green" if token == label else "yellow"
        text.append(f"[{_shown(tokenizer, token)[0].strip('[]')}→{piece}]", style=color)
    return text


def _shown(tokenizer: VocabularyTokenizer, token: int) -> tuple[str, bool]:
    """A token's text without the mark of a word's start, and whether it has it."""
    piece = tokenizer.piece(token)
    return piece.removeprefix(WORD_BOUNDARY), piece.startswith(WORD_BOUNDARY)
