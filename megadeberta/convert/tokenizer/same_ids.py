"""Does a tokenizer that transformers loads give the ids that a model was trained on?"""

import itertools
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError
from transformers import PreTrainedTokenizerBase

from megadeberta.config.data import DataConfig
from megadeberta.data.indexed import TokenShard
from megadeberta.data.tokenizer import MASK, SPECIAL_PIECES, VocabularyTokenizer
from megadeberta.errors import CheckpointError, DataError
from megadeberta.weights.source import ModelSource

_DOCUMENTS, _TOKENS = 200, 2000
"""Of the text of a run: how many, and the most of each."""
ODD_TEXTS = (
    "Two  spaces, a\ttab, a new\nline and a non\u00a0breaking space.",
    "Ligatures \ufb01 \ufb02, full width \uff21\uff22\uff11, half width \uff76\uff9e, fractions \u00bd, \u2460.",
    "e\u0301 Vie\u0302\u0323t \u1112\u1161\u11ab \u304b\u3099 \u0643\u0651\u064e \u200bzero\u200dwidth\ufeff",
    "E\u0301CLAIR a\u0328\u0301 c\u0327\u0323 \u03b1\u0345 \u0397\u0313\u0301",
    " \U0001f469\u200d\U0001f52c \U0001f1e9\U0001f1ea ",
    "a\u2581b \u2581 \u13a0\u13a1 \u1400",
    "",
)
_KNOWN = re.compile("[\U00010500-\U00016fff\U0008fffe\U0008ffff\U000f0000-\U000ffffd]|<0x[0-9A-F]{2}>")
"""What a text can hold that tokenizer.json may cut otherwise, see docs/numerics.md. No reason to lose an export."""


@dataclass(frozen=True)
class Exceptions:
    """Texts with other ids, for a known reason."""

    toss_ups: int
    """Of which some part can be cut in two ways of the same probability."""
    known: int
    """That hold letters of the newest scripts, private characters or names of bytes."""

    def __str__(self) -> str:
        """What to say of them; empty without any."""
        parts = [
            f"{self.toss_ups} that hold a word with two cuts of the same probability, such as a run of one character, "
            "where rounding decides",
            f"{self.known} that hold letters of the newest scripts, private characters or names of bytes",
        ]
        found = [part for part, count in zip(parts, (self.toss_ups, self.known), strict=True) if count]
        return f", but for {' and '.join(found)} (docs/numerics.md)" if found else ""


def texts_of_run(source: ModelSource, tokenizer: VocabularyTokenizer) -> list[str]:
    """Documents of the run that the weights are from, as their tokens read: held-out ones, or else of the training
    text; none where the token files are not there any more.
    """
    try:
        data = DataConfig.model_validate(source.run.get("config", {}).get("data"))
    except ValidationError:  # no run, or one of before a token file had to be named so
        return []
    prefixes = [*data.valid_prefixes.values(), *data.train_prefixes.values()]
    texts: list[str] = []
    for prefix in prefixes:
        texts += itertools.islice(_documents(prefix, tokenizer), _DOCUMENTS - len(texts))
    return texts


def _documents(prefix: Path, tokenizer: VocabularyTokenizer) -> Iterator[str]:
    try:
        shard = TokenShard.open(prefix)
    except DataError:
        return
    with shard:
        if shard.manifest.tokenizer_sha256 != tokenizer.sha256:
            return
        for number in range(shard.num_documents):
            yield tokenizer.decode(shard.document(number)[:_TOKENS].tolist())


def check_same_ids(
    reference: VocabularyTokenizer, found: PreTrainedTokenizerBase, texts: Sequence[str], name: str
) -> Exceptions:
    """Compare both on odd texts and on ``texts``; names of special tokens in them are special to ``found`` alone.

    Args:
        name: of the folder, for errors.

    Raises:
        CheckpointError: other ids, or another id of [MASK].
    """
    toss_ups = known = 0
    for text in (*ODD_TEXTS, *texts):
        if any(special in text for special in (*SPECIAL_PIECES, MASK)):
            continue
        ids, expected = found(text)["input_ids"], reference.encode(text)
        if ids == [reference.cls_id, *expected, reference.sep_id]:
            continue
        if reference.is_toss_up(expected, ids[1:-1]):
            toss_ups += 1
        elif _KNOWN.search(text):
            known += 1
        else:
            raise CheckpointError(f"{name}: AutoTokenizer and {reference.path.name} give different ids for {text!r}")
    if found.mask_token_id != reference.mask_id:
        raise CheckpointError(f"{name}: [MASK] is {found.mask_token_id}, expected {reference.mask_id}")
    return Exceptions(toss_ups, known)
