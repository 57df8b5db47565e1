"""tokenizer.json gives SentencePiece's ids, through the tokenizers library and through AutoTokenizer."""

import random
import subprocess
import sys
import textwrap
import unicodedata
from pathlib import Path

import pytest
import sentencepiece
from tokenizers import Tokenizer
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from megadeberta.convert.tokenizer.tokenizer_json import write_tokenizer
from megadeberta.data.tokenizer import SentencePieceTokenizer
from megadeberta.errors import DataError
from tests.data_fixtures import NUM_PIECES, SOTU, train_vocabulary
from tests.unit.convert.odd_texts import ODD_TEXTS, SPECIAL_NAMES


@pytest.fixture(scope="module")
def reference(spm: Path) -> sentencepiece.SentencePieceProcessor:
    return sentencepiece.SentencePieceProcessor(model_file=str(spm))


@pytest.fixture(scope="module")
def fast(spm: Path) -> Tokenizer:
    return SentencePieceTokenizer.load(spm).fast()


@pytest.fixture(scope="module")
def auto(spm: Path, tmp_path_factory: pytest.TempPathFactory) -> PreTrainedTokenizerFast:
    folder = tmp_path_factory.mktemp("tokenizer")
    write_tokenizer(spm, folder, max_length=512)
    return AutoTokenizer.from_pretrained(folder)


def test_the_five_special_ids_are_those_of_published_models(auto: PreTrainedTokenizerFast) -> None:
    tokens = ["[PAD]", "[CLS]", "[SEP]", "[UNK]", "[MASK]"]
    assert auto.convert_tokens_to_ids(tokens) == [0, 1, 2, 3, NUM_PIECES]
    assert [auto.pad_token_id, auto.cls_token_id, auto.sep_token_id, auto.unk_token_id] == [0, 1, 2, 3]
    assert auto.mask_token_id == NUM_PIECES == len(auto) - 1
    assert auto.model_max_length == 512


def test_templates_put_one_separator_behind_each_text(
    auto: PreTrainedTokenizerFast, reference: sentencepiece.SentencePieceProcessor
) -> None:
    first, second = reference.encode("the people"), reference.encode("of the states")
    assert auto("the people")["input_ids"] == [1, *first, 2]
    pair = auto("the people", "of the states")
    assert pair["input_ids"] == [1, *first, 2, *second, 2]
    assert pair["token_type_ids"] == [0] * (len(first) + 2) + [1] * (len(second) + 1)
    padded = auto(["the people", "a"], padding=True)
    assert padded["input_ids"][1][-1] == 0 and padded["attention_mask"][1][-1] == 0


@pytest.mark.parametrize("kind", ODD_TEXTS)
def test_auto_tokenizer_equals_sentencepiece_on_odd_text(
    kind: str,
    auto: PreTrainedTokenizerFast,
    fast: Tokenizer,
    reference: sentencepiece.SentencePieceProcessor,
) -> None:
    for text in ODD_TEXTS[kind]:
        assert auto(text, add_special_tokens=False)["input_ids"] == reference.encode(text), ascii(text)
        assert _normalized(fast, text) == reference.normalize(text), ascii(text)


def test_the_odd_texts_are_not_all_unknown(reference: sentencepiece.SentencePieceProcessor) -> None:
    texts = [text for kind, texts in ODD_TEXTS.items() if not kind.startswith("unseen") for text in texts]
    unknown = [text for text in texts if 3 in reference.encode(text)]
    assert len(unknown) < len(texts) / 10, [ascii(text) for text in unknown]


def test_auto_tokenizer_equals_sentencepiece_on_every_line_of_the_text(
    auto: PreTrainedTokenizerFast, reference: sentencepiece.SentencePieceProcessor
) -> None:
    lines = SOTU.read_text(encoding="utf-8").splitlines()
    assert len(lines) > 400
    ids = auto(lines, add_special_tokens=False)["input_ids"]
    differing = [line for line, found in zip(lines, ids, strict=True) if found != reference.encode(line)]
    assert differing == []


def test_every_character_alone_is_normalized_as_sentencepiece_does(
    fast: Tokenizer, reference: sentencepiece.SentencePieceProcessor
) -> None:
    every_seventh = [chr(code) for code in range(1, 0x30000, 7) if unicodedata.category(chr(code)) not in ("Cn", "Cs")]
    texts = [f"a{character}b" for character in every_seventh] + [f"{character}b" for character in every_seventh]
    assert [ascii(t) for t in texts if _normalized(fast, t) != reference.normalize(t)] == []


@pytest.mark.parametrize("form", ["NFC", "NFD", "NFKC", "NFKD"])
def test_every_normal_form_of_a_character_is_normalized_as_sentencepiece_does(
    form: str, fast: Tokenizer, reference: sentencepiece.SentencePieceProcessor
) -> None:
    characters = [chr(code) for code in [*range(0xA0, 0xAC00), *range(0xAC00, 0xD7A4, 50), *range(0xF900, 0xFFFE)]]
    texts = {unicodedata.normalize(form, character) for character in characters}
    differing = {text for text in texts if _normalized(fast, text) != reference.normalize(text)}
    assert differing == set()


MARKS = [chr(code) for code in (*range(0x300, 0x30F), 0x323, 0x327, 0x5BC, 0x5B0, 0x651, 0x64E, 0x93C, 0xE48, 0x3099)]


def test_marks_in_any_order_are_normalized_as_sentencepiece_does(
    fast: Tokenizer, reference: sentencepiece.SentencePieceProcessor
) -> None:
    rng = random.Random(1)
    characters = {character for texts in ODD_TEXTS.values() for text in texts for character in text}
    plain = sorted(c for c in characters if unicodedata.normalize("NFKC", c) == c)
    texts = ["".join(rng.choice(rng.choice((plain, MARKS))) for _ in range(rng.randint(1, 8))) for _ in range(5000)]
    differing = [text for text in texts if _normalized(fast, text) != reference.normalize(text)]
    assert [ascii(text) for text in differing] == []


def test_no_mixture_of_characters_crashes_the_library(fast: Tokenizer) -> None:
    rng = random.Random(2)
    odd = sorted({character for texts in ODD_TEXTS.values() for text in texts for character in text}) + MARKS
    for _ in range(10_000):
        fast.encode("".join(rng.choice(odd) for _ in range(rng.randint(0, 6))))


def test_names_of_special_tokens_in_text_are_text_when_asked_for(
    auto: PreTrainedTokenizerFast, reference: sentencepiece.SentencePieceProcessor
) -> None:
    for text in SPECIAL_NAMES:
        ids = auto(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
        assert ids == reference.encode(text), text


@pytest.mark.parametrize(
    ("text", "tokens"),
    [
        ("the [MASK] of the", ["▁the", "[MASK]", "▁of", "▁the"]),
        ("the [MASK].", ["▁the", "[MASK]", "."]),
        ("[MASK] the", ["[MASK]", "▁the"]),
        ("  [MASK]  [MASK], ", ["[MASK]", "[MASK]", ","]),
        ("the[MASK]", ["▁the", "[MASK]"]),
    ],
)
def test_text_around_a_mask_is_cut_as_in_masked_training_data(fast: Tokenizer, text: str, tokens: list[str]) -> None:
    assert fast.encode(text, add_special_tokens=False).tokens == tokens


def test_decoding_gives_the_text_back(auto: PreTrainedTokenizerFast) -> None:
    assert auto.decode(auto("The people, of the States.")["input_ids"], skip_special_tokens=True) == (
        "The people, of the States."
    )


def test_loading_needs_neither_protobuf_nor_sentencepiece(spm: Path, tmp_path: Path) -> None:
    write_tokenizer(spm, tmp_path, max_length=512)
    program = """
        import sys
        sys.modules["sentencepiece"] = sys.modules["google.protobuf"] = None  # as if not installed
        from transformers import AutoTokenizer
        print(AutoTokenizer.from_pretrained(sys.argv[1])("the people [MASK]")["input_ids"])
    """
    command = [sys.executable, "-c", textwrap.dedent(program), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    expected = [1, *sentencepiece.SentencePieceProcessor(model_file=str(spm)).encode("the people"), NUM_PIECES, 2]
    assert done.stdout.strip() == str(expected)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"add_dummy_prefix": False}, "add_dummy_prefix=false"),
        ({"remove_extra_whitespaces": False}, "remove_extra_whitespaces=false"),
        ({"treat_whitespace_as_suffix": True}, "treat_whitespace_as_suffix"),
        ({"user_defined_symbols": ["the people"]}, "user_defined_symbols that hold a space"),
    ],
)
def test_a_vocabulary_that_json_cannot_express_is_refused(options: dict, named: str, tmp_path: Path) -> None:
    path = train_vocabulary(tmp_path / "spm.model", vocab_size=400, num_sub_iterations=1, **options)
    tokenizer = SentencePieceTokenizer.load(path)
    for refuses in (tokenizer.check_exportable, tokenizer.fast):
        with pytest.raises(DataError, match=rf"spm\.model: was trained with .*{named}.*other ids than SentencePiece"):
            refuses()


def _normalized(fast: Tokenizer, text: str) -> str:
    """The library's normalisation with the word boundary in front, as its pre-tokenizer adds it."""
    found = fast.normalizer.normalize_str(text).replace(" ", "▁")
    return found if not found or found.startswith("▁") else "▁" + found
