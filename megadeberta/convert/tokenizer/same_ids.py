"""Does a tokenizer that transformers loads give the ids that a model was trained on?"""

import itertools
from collections.abc import Iterator, Sequence
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
    "a\u2581b \u2581 <0x41> \u13a0\u13a1 \u1400",
    "",
)


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
) -> int:
    """Compare both on odd texts and on ``texts``; names of special tokens in them are special to ``found`` alone.

    Args:
        name: of the folder, for errors.

    Returns:
        Texts of which some part can be cut in two ways of the same probability, and the two tokenizers took different
        ones.

    Raises:
        CheckpointError: other ids, or another id of [MASK].
    """
    toss_ups = 0
    for text in (*ODD_TEXTS, *texts):
        if any(special in text for special in (*SPECIAL_PIECES, MASK)):
            continue
        ids, expected = found(text)["input_ids"], reference.encode(text)
        if ids == [reference.cls_id, *expected, reference.sep_id]:
            continue
        if not reference.is_toss_up(expected, ids[1:-1]):
            raise CheckpointError(f"{name}: AutoTokenizer and {reference.path.name} give different ids for {text!r}")
        toss_ups += 1
    if found.mask_token_id != reference.mask_id:
        raise CheckpointError(f"{name}: [MASK] is {found.mask_token_id}, expected {reference.mask_id}")
    return toss_ups
