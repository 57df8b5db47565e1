"""SentencePiece models of every kind give equal ids through the tokenizers library."""

import random
import unicodedata
from functools import cache
from pathlib import Path

import pytest
import sentencepiece
from tokenizers import Tokenizer

from megadeberta.data.tokenizer import PieceKind, SentencePieceTokenizer
from megadeberta.data.tokenizer.fast.charsmap import read_charsmap
from megadeberta.data.tokenizer.fast.normalizer import check_normalization, sentencepiece_normalizer
from megadeberta.data.tokenizer.fast.sentencepiece_file import SCORE_STEP, parse_unigram_model, round_scores
from megadeberta.errors import DataError
from tests.data_fixtures import SOTU, train_vocabulary
from tests.unit.convert.odd_texts import ALL_TEXTS, ODD_TEXTS

KINDS = {
    "byte_fallback": {"byte_fallback": True, "character_coverage": 0.99},
    "uncased": {"normalization_rule_name": "nmt_nfkc_cf"},
    "uncased, byte_fallback": {"normalization_rule_name": "nfkc_cf", "byte_fallback": True},
    "pieces across spaces": {"split_by_whitespace": False, "max_sentencepiece_length": 24},
    "user-defined symbols": {
        "user_defined_symbols": ["<br>", "\u00c9t\u00e9", "[MASK]", "e", "##"],
        "byte_fallback": True,
    },
    "uncased, user-defined symbols": {
        "user_defined_symbols": ["<BR>", "\u00c9t\u00e9", "Foo"],
        "normalization_rule_name": "nmt_nfkc_cf",
    },
    "[MASK] in the model": {"control_symbols": ["[MASK]"], "split_digits": True},
    "identity": {"normalization_rule_name": "identity"},
}
SPECIAL = ("[PAD]", "[CLS]", "[SEP]", "[UNK]", "[MASK]")
QUICK = ("byte_fallback", "pieces across spaces", "uncased, user-defined symbols")
RULES = ("nmt_nfkc", "nfkc", "nmt_nfkc_cf", "nfkc_cf")


def random_texts(count: int, seed: int) -> list[str]:
    """Letters with marks, odd characters, any characters, digits and signs, and mixtures of them."""
    rng = random.Random(seed)
    ascii_signs = [chr(code) for code in range(32, 127)]
    marks = [chr(code) for code in (*range(0x300, 0x330), 0x345, 0x3099, 0x93C, 0xE48, 0x5B0, 0x651)]
    odd = [character for texts in ODD_TEXTS.values() for text in texts for character in text]
    anything = [chr(code) for code in range(1, 0x30000) if not 0xD800 <= code < 0xE000]
    some = "aAe\u00c9EtF oBRbr<>#?\u0301\u0302 0123.,\u2581"
    mixtures = [[ascii_signs], [odd], [anything], [ascii_signs, marks], [odd, anything, ascii_signs, marks], [some]]
    texts = []
    for _ in range(count):
        pools = rng.choice(mixtures)
        texts.append("".join(rng.choice(rng.choice(pools)) for _ in range(rng.randint(1, 40))))
    return texts


def all_texts() -> list[str]:
    lines = [line for line in SOTU.read_text(encoding="utf-8").splitlines() if line]
    texts = [*lines, *(text for texts in ODD_TEXTS.values() for text in texts), *random_texts(1000, seed=3)]
    texts += ["<br> a<BR>b <Br>", "ETE \u00c9t\u00e9 E\u0301te\u0301", "foo Foo\u0301 FOO", "<0x41> a<0x0A>", "[CLS"]
    texts += ["## e\u0301", "I\u0307\u0301x", "Foo", "<BR>"]
    texts += [unicodedata.normalize("NFD", text) for text in texts[len(lines) :]]
    return [text for text in dict.fromkeys(texts) if not any(name in text for name in SPECIAL)]


@pytest.fixture(
    scope="module", params=[pytest.param(name, marks=() if name in QUICK else pytest.mark.campaign) for name in KINDS]
)
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("kind") / "spm.model"
    train_vocabulary(path, extra=ALL_TEXTS, vocab_size=900, num_sub_iterations=1, **KINDS[request.param])
    path.write_bytes(round_scores(path.read_bytes()))  # as prep does: otherwise chance decides between equal cuts
    return path


def test_equal_ids_on_text_and_odd_strings(model: Path) -> None:
    reference = SentencePieceTokenizer.load(model)
    reference.check_exportable()
    fast = reference.fast()
    processor = sentencepiece.SentencePieceProcessor(model_file=str(model))
    texts = all_texts()
    assert len(texts) > 1500
    found = [encoding.ids for encoding in fast.encode_batch(texts, add_special_tokens=False)]
    assert [ascii(text) for text, ids in zip(texts, found, strict=True) if ids != processor.encode(text)] == []


def test_special_ids_and_kinds(model: Path) -> None:
    tokenizer = SentencePieceTokenizer.load(model)
    kinds, fast = tokenizer.piece_kinds(), tokenizer.fast()
    assert len(kinds) == tokenizer.vocab_size_needed == fast.get_vocab_size()
    assert kinds[[0, 1, 2, 3, tokenizer.mask_id]].tolist() == [PieceKind.SPECIAL] * 5
    assert [fast.token_to_id(name) for name in SPECIAL] == [0, 1, 2, 3, tokenizer.mask_id]
    byte_ids = [number for number in range(tokenizer.num_pieces) if tokenizer.piece(number) == "<0x41>"]
    assert all(kinds[number] == PieceKind.CONTINUATION for number in byte_ids)


def test_unused_pieces_are_never_found(tmp_path: Path) -> None:
    path = train_vocabulary(tmp_path / "spm.model", vocab_size=500, num_sub_iterations=1)
    unused = b"\x0a\x06people\x15\x00\x00\x00\xc8\x18\x05"  # a piece, a low score and type 5
    path.write_bytes(path.read_bytes() + b"\x0a" + bytes([len(unused)]) + unused)
    tokenizer = SentencePieceTokenizer.load(path)
    fast = tokenizer.fast()
    assert tokenizer.num_pieces == 501 and fast.token_to_id("[MASK]") == 501
    for text in ("people", "thepeople", "the \u13a0 people"):
        assert fast.encode(text, add_special_tokens=False).ids == tokenizer.encode(text)
    assert tokenizer.piece_kinds()[500] == PieceKind.SPECIAL


def test_bytes_are_decoded_to_their_character(tmp_path: Path) -> None:
    path = train_vocabulary(tmp_path / "spm.model", vocab_size=700, num_sub_iterations=1, byte_fallback=True)
    fast = SentencePieceTokenizer.load(path).fast()
    ids = fast.encode("the \u13a0 people", add_special_tokens=False).ids
    assert 3 not in ids
    assert fast.decode(ids) == "the \u13a0 people"


@cache
def normalizers_of(rule: str) -> tuple[sentencepiece.SentencePieceProcessor, Tokenizer, dict[str, str]]:
    content = sentencepiece.SentencePieceNormalizer(
        rule_name=rule, add_dummy_prefix=False, remove_extra_whitespaces=True, escape_whitespaces=False
    )
    charsmap = parse_unigram_model(_serialized(rule)).charsmap
    return content, sentencepiece_normalizer(charsmap), read_charsmap(charsmap)


@pytest.mark.parametrize("rule", ["nmt_nfkc", *(pytest.param(rule, marks=pytest.mark.campaign) for rule in RULES[1:])])
def test_normalisation_is_that_of_sentencepiece(rule: str) -> None:
    theirs, ours, table = normalizers_of(rule)
    several = [key for key in table if len(key) > 1 and min(key) < "\U00010500"]  # not letters of the newest scripts
    rng = random.Random(4)
    texts = rng.sample(several, 2000) + random_texts(1000, seed=5)
    texts += ["".join(rng.choices(several, k=3)) + rng.choice("\u0301\u0323\u0345\u3099x ") for _ in range(1000)]
    differing = [t for t in texts if ours.normalize_str(t).strip(" \u2581") != theirs.normalize(t).strip(" \u2581")]
    assert [ascii(text) for text in differing] == []


def test_a_table_that_the_library_cannot_follow_is_refused(tmp_path: Path) -> None:
    rules = tmp_path / "rules.tsv"
    lines = [f"{0x4E00 + n:X} {0x4F00 + n:X}\t{0x61 + n % 26:X}{' 62' * (n // 26)}\n" for n in range(90)]
    rules.write_text("".join(lines))
    path = train_vocabulary(
        tmp_path / "spm.model", vocab_size=400, num_sub_iterations=1, normalization_rule_tsv=str(rules)
    )
    with pytest.raises(DataError, match=r"spm\.model: its normalisation replaces 90 groups of characters"):
        SentencePieceTokenizer.load(path).check_exportable()


def test_a_table_of_ones_own_that_it_can_follow_is_taken(tmp_path: Path) -> None:
    rules = tmp_path / "rules.tsv"
    rules.write_text("28 63 29\tA9\n41\t61\n41 300\t62 63\n")  # (c) to a sign, A to a, A with grave to bc
    path = train_vocabulary(
        tmp_path / "spm.model", vocab_size=400, num_sub_iterations=1, normalization_rule_tsv=str(rules)
    )
    tokenizer = SentencePieceTokenizer.load(path)
    tokenizer.check_exportable()
    processor = sentencepiece.SentencePieceProcessor(model_file=str(path))
    for text in ("(c) the (c", "A\u0300 the AA\u0300\u0301", "c) \u00a9(c)(c)"):
        assert tokenizer.fast().encode(text, add_special_tokens=False).ids == processor.encode(text), ascii(text)


def test_standard_tables_are_known_without_reading_them() -> None:
    for rule in RULES:
        check_normalization(parse_unigram_model(_serialized(rule)).charsmap)


def _serialized(rule: str) -> bytes:
    return sentencepiece.SentencePieceNormalizer(rule_name=rule).serialized_model_proto()


def test_rounded_scores_are_multiples_and_change_nothing_else(spm: Path) -> None:
    before, after = (parse_unigram_model(content) for content in (spm.read_bytes(), round_scores(spm.read_bytes())))
    assert [piece.text for piece in after.pieces] == [piece.text for piece in before.pieces]
    assert after.charsmap == before.charsmap
    assert all((piece.score / SCORE_STEP).is_integer() for piece in after.pieces)
    assert max(abs(a.score - b.score) for a, b in zip(after.pieces, before.pieces, strict=True)) <= SCORE_STEP / 2


def test_two_cuts_of_the_same_probability_are_told_from_a_mistake(spm: Path) -> None:
    tokenizer = SentencePieceTokenizer.load(spm)
    ids = tokenizer.encode("the people of the United States")
    assert tokenizer.is_toss_up(ids, [*ids[2:], *ids[:2]])
    assert not tokenizer.is_toss_up(ids, [*ids[:-1], 200])
