"""Training byte-level BPE and WordPiece vocabularies with the ``tokenizers`` library."""

import math
from collections import Counter
from collections.abc import Iterator

from tokenizers import Tokenizer, models, pre_tokenizers, trainers

from megadeberta.data.tokenizer import MASK, SPECIAL_PIECES
from megadeberta.data.tokenizer.byte_bpe import byte_level
from megadeberta.data.tokenizer.library import prepared, special_ids
from megadeberta.data.tokenizer.wordpiece import CONTINUES, bert_like
from megadeberta.data_prep.options import VocabularyKind, VocabularyOptions
from megadeberta.data_prep.vocabulary_sample import Sample
from megadeberta.errors import DataError

_UNKNOWN = SPECIAL_PIECES[3]


def train_library_vocabulary(sample: Sample, options: VocabularyOptions) -> bytes:
    """``tokenizer.json`` with [PAD] 0, [CLS] 1, [SEP] 2, [UNK] 3 and [MASK] last, ``options.size`` entries in all.

    The same sample and options give the same bytes.

    Raises:
        DataError: the sample allows fewer entries than asked, or needs more for its characters alone.
    """
    assert options.size is not None
    trained = options.size - 1  # without [MASK]
    make = {VocabularyKind.BPE: _byte_bpe, VocabularyKind.WORDPIECE: _wordpiece}[options.kind]
    tokenizer, trainer = make(sample, options, trained)
    tokenizer.train_from_iterator(sample.sentences(), trainer)
    if options.kind is VocabularyKind.WORDPIECE:  # without what the trainer was told to be special
        tokenizer = _wordpiece_of(tokenizer.get_vocab(with_added_tokens=False))
    found = tokenizer.get_vocab_size()
    if found < trained:
        more = "add text" if sample.is_all else f"train on more of it with --vocab-sample-bytes={2 * sample.num_bytes}"
        raise DataError(
            f"--vocab-size={options.size} is more than this corpus allows: {sample.num_bytes} bytes of text give at "
            f"most {found + 1} entries of kind {options.kind}; choose --vocab-size={found + 1} or less, or {more}"
        )
    tokenizer.add_special_tokens([MASK])
    return prepared(tokenizer, special_ids(tokenizer, "the new vocabulary"))


def _byte_bpe(sample: Sample, options: VocabularyOptions, size: int) -> tuple[Tokenizer, trainers.Trainer]:
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    _check_size(options, len(SPECIAL_PIECES) + len(alphabet), size, "the 256 bytes and the special tokens", "")
    trainer = trainers.BpeTrainer(
        vocab_size=size, special_tokens=list(SPECIAL_PIECES), initial_alphabet=alphabet, show_progress=False
    )
    return byte_level(models.BPE()), trainer


def _wordpiece(sample: Sample, options: VocabularyOptions, size: int) -> tuple[Tokenizer, trainers.Trainer]:
    alphabet = covering_characters(sample.sentences(), options.character_coverage)
    what = f"{len(alphabet)} characters of the text, at the start of a word and inside, and the special tokens"
    least = len(SPECIAL_PIECES) + 2 * len(alphabet)
    _check_size(options, least, size, what, ", or lower --character-coverage")
    # The trainer numbers the characters inside words as it meets them, in the order of a hash table, and ties between
    # merges go by number. Named beforehand they have the same numbers in every run.
    inside = [CONTINUES + character for character in sorted(alphabet)]
    trainer = trainers.WordPieceTrainer(
        vocab_size=size,
        special_tokens=[*SPECIAL_PIECES, *inside],
        limit_alphabet=len(alphabet),
        initial_alphabet=alphabet,
        show_progress=False,
    )
    return _wordpiece_of({}), trainer


def _wordpiece_of(vocabulary: dict[str, int]) -> Tokenizer:
    model = models.WordPiece(vocabulary, unk_token=_UNKNOWN) if vocabulary else models.WordPiece(unk_token=_UNKNOWN)
    tokenizer = bert_like(model, lowercase=False, strip_accents=False)
    if vocabulary:
        tokenizer.add_special_tokens(list(SPECIAL_PIECES))
    return tokenizer


def covering_characters(texts: Iterator[str], coverage: float) -> list[str]:
    """The most frequent characters that make up ``coverage`` of all but spaces; ties in the order of their codes."""
    counts: Counter[str] = Counter()
    for text in texts:
        counts.update(text)
    ordered = sorted((character for character in counts if not character.isspace()), key=lambda c: (-counts[c], c))
    wanted, seen, found = coverage * sum(counts[character] for character in ordered), 0, []
    for character in ordered:
        if seen >= math.ceil(wanted):
            break
        seen += counts[character]
        found.append(character)
    return found


def _check_size(options: VocabularyOptions, least: int, size: int, what: str, otherwise: str) -> None:
    if size < least:
        raise DataError(
            f"--vocab-size={options.size} is too small: {what} need {least + 1} entries alone; choose "
            f"--vocab-size={least + 1} or more{otherwise}"
        )
