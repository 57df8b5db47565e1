"""Ids found word by word are SentencePiece's own, for the models that can be cut so; others are left to it."""

import random
from pathlib import Path

import numpy as np
import pytest
import sentencepiece
from rich.console import Console

from megadeberta.data.tokenizer import SentencePieceTokenizer, word_store
from megadeberta.data.tokenizer.costly_text import CostlyText
from megadeberta.data.tokenizer.fast.sentencepiece_file import round_scores
from megadeberta.data.tokenizer.word_encoder import WordEncoder
from megadeberta.data.tokenizer.word_model import EXACT_STEPS, WordModel, read_word_model
from megadeberta.data.tokenizer.word_table import WordTable
from megadeberta.data_prep.normalization import normalization
from megadeberta.data_prep.options import PrepOptions, VocabularyOptions
from megadeberta.data_prep.prepare import prepare
from tests.data_fixtures import SOTU, train_vocabulary
from tests.unit.convert.odd_texts import ALL_TEXTS
from tests.unit.data.test_fast_unigram import all_texts

BOUNDARY = "\u2581"
USED = {
    "as prep trains them": {},
    "byte_fallback": {"byte_fallback": True, "character_coverage": 0.99},
    "uncased": {"normalization_rule_name": "nmt_nfkc_cf", "character_coverage": 0.99},
    "identity": {"normalization_rule_name": "identity"},
    "ZWNJ kept": normalization(VocabularyOptions(size=900, keep_zwnj=True)),
    "[MASK] in the model": {"control_symbols": ["[MASK]"], "split_digits": True},
}
QUICK = ("byte_fallback",)
LEFT = {
    "pieces across spaces": {"split_by_whitespace": False, "max_sentencepiece_length": 4},
    "user-defined symbols": {"user_defined_symbols": ["<br>", "e"]},
    "no boundary in front": {"add_dummy_prefix": False},
    "spaces as they are": {"remove_extra_whitespaces": False},
    "boundaries behind words": {"treat_whitespace_as_suffix": True},
    "rules for spaces": {"normalizer": [("a b", "ab")]},
    "rules that make two spaces": {"normalizer": [("ab", "a  b")]},
    "rules that make a boundary": {"normalizer": [("ab", "a" + BOUNDARY)]},
}


def trained(folder: Path, **options: object) -> Path:
    if isinstance(rules := options.get("normalizer"), list):
        options["normalizer"] = sentencepiece.SentencePieceNormalizer(norm_map=rules)
    path = train_vocabulary(
        folder / "spm.model", **{"extra": ALL_TEXTS, "vocab_size": 900, "num_sub_iterations": 1} | options
    )
    path.write_bytes(round_scores(path.read_bytes()))
    return path


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained(tmp_path_factory.mktemp("rounded"), character_coverage=0.99)


def encoder_of(path: Path) -> tuple[WordEncoder, sentencepiece.SentencePieceProcessor]:
    processor = sentencepiece.SentencePieceProcessor(model_file=str(path))
    found = read_word_model(path.read_bytes())
    assert found is not None
    return WordEncoder(processor, found), processor


def assert_equal_ids(encoder: WordEncoder, processor: sentencepiece.SentencePieceProcessor, texts: list[str]) -> None:
    expected = processor.encode(texts, num_threads=1)
    ids, lengths = encoder.encode([text.encode() for text in texts])
    found = np.split(ids, np.cumsum(lengths)[:-1])
    different = [ascii(text[:200]) for text, a, b in zip(texts, expected, found, strict=True) if a != b.tolist()]
    assert different == []


def mixed_texts(count: int, seed: int) -> list[str]:
    """Words of text, of any characters, very long ones, unknown ones, and every way to put spaces between them."""
    rng = random.Random(seed)
    words = SOTU.read_text(encoding="utf-8").split()
    odd = [word for text in ALL_TEXTS for word in text.split(" ")]
    spaces = [" "] * 20 + ["  ", "   ", "\u00a0", "\t", "\u3000", "\n", " \u200b ", ""]

    def word() -> str:
        kind = rng.random()
        if kind < 0.7:
            return rng.choice(words)
        if kind < 0.8:
            return rng.choice(odd)
        if kind < 0.9:
            return "".join(
                chr(rng.choice((rng.randrange(1, 0xD800), rng.randrange(33, 127)))) for _ in range(rng.randrange(1, 9))
            )
        return rng.choice(("\u13a0", "\u13a1\u13a0x", "-", BOUNDARY, "a" + BOUNDARY, "\ufdfa", "a")) * rng.randrange(
            1, 50
        )

    return ["".join(word() + rng.choice(spaces) for _ in range(rng.randrange(0, 40))) for _ in range(count)]


@pytest.mark.parametrize(
    "kind", [pytest.param(name, marks=() if name in QUICK else pytest.mark.campaign) for name in USED]
)
def test_ids_are_those_of_sentencepiece(kind: str, tmp_path: Path) -> None:
    encoder, processor = encoder_of(trained(tmp_path, **USED[kind]))
    texts = [*all_texts(), *mixed_texts(500, seed=1)]
    assert_equal_ids(encoder, processor, texts)
    assert_equal_ids(encoder, processor, texts[::-1])  # all words known by now


@pytest.mark.parametrize("kind", LEFT)
def test_other_models_are_left_to_sentencepiece(kind: str, tmp_path: Path) -> None:
    assert read_word_model(trained(tmp_path, extra=(), vocab_size=300, **LEFT[kind]).read_bytes()) is None


def test_a_model_without_rounded_scores_is_left_to_sentencepiece(spm: Path) -> None:
    assert read_word_model(spm.read_bytes()) is None
    texts = [line.encode() for line in SOTU.read_text(encoding="utf-8").splitlines()]
    tokenizer = SentencePieceTokenizer.load(spm)
    ids, lengths = tokenizer.encode_utf8(texts)
    assert ids.tolist() == [number for text in texts for number in tokenizer.encode(text.decode())]
    assert lengths.sum() == len(ids)


def test_ids_do_not_depend_on_what_was_encoded_before(model: Path) -> None:
    texts = [text.encode() for text in mixed_texts(200, seed=2)]
    fresh, _ = encoder_of(model)
    other, _ = encoder_of(model)
    other.encode([text.encode() for text in mixed_texts(200, seed=3)])
    for found, expected in zip(other.encode(texts), fresh.encode(texts), strict=True):
        np.testing.assert_array_equal(found, expected)


def test_full_tables_take_no_more_words_and_give_the_same_ids(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(word_store, "_TABLES", ((2, 6), (5, 3)))
    monkeypatch.setattr(word_store, "_MOST_NEW", 1.0)  # new words are encoded nevertheless
    encoder, processor = encoder_of(model)
    for seed in range(3):
        assert_equal_ids(encoder, processor, mixed_texts(100, seed=seed))
    assert [table.room for table in encoder._store._tables] == [0, 0]
    assert encoder._store._used < (48 + 6) * 40


def test_text_of_ever_new_words_is_left_to_sentencepiece_and_tables_are_emptied(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(word_store, "_TABLES", ((2, 6), (5, 3)))
    monkeypatch.setattr(word_store, "_PATIENCE", 2)
    encoder, processor = encoder_of(model)
    rng = random.Random(1)
    texts = [" ".join(f"{rng.getrandbits(32):x}" for _ in range(200)) for _ in range(4)]
    rooms = []
    for text in texts:
        assert_equal_ids(encoder, processor, [text])
        rooms.append(encoder._store._tables[0].room)
    assert rooms == [0, 0, 48, 0]  # filled, given up, given up and emptied, filled


def long_text(num_bytes: int, seed: int) -> str:
    rng = random.Random(seed)
    words = SOTU.read_text(encoding="utf-8").split()
    return " ".join(rng.choices(words, k=num_bytes // 5))


@pytest.mark.parametrize("byte_fallback", [False, True])
def test_a_document_goes_on_where_the_sums_are_no_longer_exact(byte_fallback: bool, tmp_path: Path) -> None:
    encoder, processor = encoder_of(trained(tmp_path, byte_fallback=byte_fallback, character_coverage=0.99))
    texts = [long_text(size, seed=size) for size in (36_000, 150_000)]
    texts += [
        text + end
        for text in texts
        for end in (f" {BOUNDARY}a {BOUNDARY}", " \u200b", "\u13a0 \u13a0", "\x00 b", "x" * 2000)
    ]
    texts += ["ab" * 50_000, "ab" * 50_000 + " " + texts[0]]
    assert_equal_ids(encoder, processor, texts)


def test_sentencepiece_sees_no_more_than_the_end_of_a_long_document(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder, _ = encoder_of(model)
    text = long_text(60_000, seed=1).encode()
    encoder.encode([text])
    seen: list[int] = []
    processor = encoder._processor

    class Counting:
        normalize = processor.normalize

        def encode(self, texts: list[str], **options: object) -> object:
            seen.extend(map(len, texts))
            return processor.encode(texts, **options)

    monkeypatch.setattr(encoder, "_processor", Counting())
    encoder.encode([text, text[: text.index(b" ", 20_000)]])
    assert len(seen) == 1 and seen[0] < len(text) - 20_000


def test_costly_texts_cost_what_was_asked(model: Path) -> None:
    processor = sentencepiece.SentencePieceProcessor(model_file=str(model))
    found = read_word_model(model.read_bytes())
    assert found is not None
    costly = CostlyText(processor, found)
    for cost in range(EXACT_STEPS // 4, EXACT_STEPS, EXACT_STEPS // 7 + 1):
        text, count = costly.of(cost) or pytest.fail(f"none of {cost}")
        ids = processor.encode(text)
        unknown = text.count(costly._unknown)
        assert len(ids) == count
        assert int(found.costs[ids].sum()) + unknown * found.most == cost


def test_words_whose_cost_is_out_of_proportion_are_not_looked_up(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = read_word_model(model.read_bytes())
    assert found is not None
    processor = sentencepiece.SentencePieceProcessor(model_file=str(model))
    dear = WordModel(found.costs, found.characters, found.is_unknown, 1 << 17, found.longest_replacement)
    encoder = WordEncoder(processor, dear)  # of no more than six characters
    assert_equal_ids(encoder, processor, [long_text(20_000, seed=5), "a b", "a " + "extraordinarily b"])


def test_a_table_holds_what_was_added_and_nothing_else() -> None:
    rng = np.random.default_rng(1)
    table = WordTable(2, slot_bits=12)
    there = np.unique(rng.integers(0, 60, (2500, 2)).astype(np.uint64) << np.uint64(40), axis=0)
    rng.shuffle(there)
    there, missing = there[:1500], there[1500:]
    for start in range(0, 1500, 500):
        part = there[start : start + 500]
        table.add([part[:, 0], part[:, 1]], np.arange(start, start + 500) + 1)
    np.testing.assert_array_equal(table.find([there[:, 0], there[:, 1]]), np.arange(1500) + 1)
    assert not table.find([missing[:, 0], missing[:, 1]]).any()
    assert table.room == 3072 - 1500


def test_prep_writes_the_same_files_with_and_without(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def prepared(name: str) -> dict[str, bytes]:
        options = PrepOptions(corpora=(SOTU,), output=tmp_path / name, vocabulary=VocabularyOptions(tokenizer=model))
        prepare(options, console=Console(quiet=True), plot=lambda folder, lengths: None)
        return {file.name: file.read_bytes() for file in (tmp_path / name).glob("*.[bi][id][nx]")}

    used: list[int] = []
    encode = WordEncoder.encode
    monkeypatch.setattr(WordEncoder, "encode", lambda *given: used.append(len(given[1])) or encode(*given))
    with_words = prepared("with")
    assert used
    monkeypatch.setattr("megadeberta.data.tokenizer.sentencepiece_model.read_word_model", lambda content: None)
    assert len(with_words) == 4 and prepared("without") == with_words
