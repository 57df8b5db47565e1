"""Masking of scripts that put no space between words: pieces on their own, the exact rate, short runs."""

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from tokenizers import models, pre_tokenizers, trainers

from megadeberta.config.objective import ObjectiveConfig
from megadeberta.data.counter_random import stream_key
from megadeberta.data.masking import MlmMasker, find_units
from megadeberta.data.token_kinds import token_kinds
from megadeberta.data.tokenizer import CLS_ID, SEP_ID, PieceKind, SentencePieceTokenizer, VocabularyTokenizer
from megadeberta.data.tokenizer.byte_bpe import ByteBpeTokenizer, byte_level
from megadeberta.data.tokenizer.library import ALL_SPECIAL
from megadeberta.data.tokenizer.pieces import kind_of_text
from tests.data_fixtures import SOTU, train_vocabulary

PIECES = 800
TEXTS = {
    "Chinese": "我们认为下面这些真理是不言而喻的人人生而平等造物者赋予他们若干不可剥夺的权利",
    "Japanese": "われわれは以下の事実を自明のことと信じるすなわちすべての人間は生まれながらにして平等でありカナも",
    "Thai": "เราถือว่าความจริงเหล่านี้เป็นสิ่งที่ประจักษ์แจ้งในตัวเองว่ามนุษย์ทุกคนถูกสร้างขึ้นมาเท่าเทียมกัน",
    "Khmer": "មនុស្សទាំងអស់កើតមកមានសេរីភាពនិងសមភាពក្នុងសេចក្តីថ្លៃថ្នូរនិងសិទ្ធិ",
}
"""Words of declarations of independence and of human rights."""


def runs_and_rate(kinds: NDArray[np.uint8], tokens: NDArray[np.int64]) -> tuple[float, float]:
    """Mean length of a run of masked tokens, and the fraction of the candidates that is masked."""
    made = MlmMasker(ObjectiveConfig(), kinds, mask_id=len(kinds) - 1)(tokens, stream_key(1, np.arange(len(tokens))))
    hidden = np.zeros(tokens.shape, bool)
    rows, slots = np.nonzero(made.masked_labels)
    hidden[rows, made.masked_positions[rows, slots]] = True
    starts = np.count_nonzero(np.diff(hidden.astype(int), axis=1) == 1)
    return hidden.sum() / starts, hidden.sum() / np.count_nonzero(kinds[tokens] != PieceKind.SPECIAL)


@pytest.mark.parametrize("language", TEXTS)
@pytest.mark.parametrize("length", [64, 128, 512])
def test_text_without_spaces_is_masked_at_its_rate_in_short_runs(language: str, length: int, unspaced: dict) -> None:
    tokenizer: SentencePieceTokenizer = unspaced[language]
    mean_run, rate = runs_and_rate(tokenizer.piece_kinds(), sequences(tokenizer, TEXTS[language], length))
    assert rate == pytest.approx(0.15, abs=0.003)
    assert mean_run < 3


def sequences(tokenizer: VocabularyTokenizer, text: str, length: int) -> NDArray[np.int64]:
    """800 pieces of the text between [CLS] and [SEP]."""
    pieces = np.array(tokenizer.encode(text * 40))
    pieces = pieces[pieces > 3]
    starts = np.random.default_rng(1).integers(0, len(pieces), 800)
    tokens = pieces[(starts[:, None] + np.arange(length)) % len(pieces)]
    tokens[:, 0], tokens[:, -1] = CLS_ID, SEP_ID
    return tokens


def byte_bpe(path: Path, lines: list[str], *, size: int) -> ByteBpeTokenizer:
    """Byte-level BPE with ``size`` merges, of which a small one cuts most characters of these scripts."""
    trainer = trainers.BpeTrainer(
        vocab_size=256 + len(ALL_SPECIAL) + size,
        special_tokens=list(ALL_SPECIAL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer = byte_level(models.BPE())
    tokenizer.train_from_iterator(lines, trainer)
    return ByteBpeTokenizer(path, tokenizer)


@pytest.mark.parametrize("language", TEXTS)
@pytest.mark.parametrize(("size", "trained_on"), [(0, "nothing"), (40, "it"), (200, "English")])
def test_characters_that_bytes_cut_are_masked_at_the_rate_in_short_runs(
    language: str, size: int, trained_on: str, tmp_path: Path
) -> None:
    english = SOTU.read_text(encoding="utf-8").splitlines()[:200]
    lines = english if trained_on == "English" else [TEXTS[language], *TEXTS.values()]
    tokenizer = byte_bpe(tmp_path, lines, size=size)
    for length in (64, 128, 512):
        tokens = sequences(tokenizer, TEXTS[language], length)[:200]
        mean_run, rate = runs_and_rate(tokenizer.piece_kinds(), tokens)
        assert rate == pytest.approx(0.15, abs=0.003)
        assert mean_run < 3


@pytest.mark.parametrize("size", [0, 200, 1000])
def test_bytes_of_other_scripts_go_with_what_stands_in_front(size: int, tmp_path: Path) -> None:
    texts = [
        "It’s a café — naïve… 5 € 😀👍🏽!",
        "नमस्ते दुनिया",
        "Tiếng Việt được",
        "Привет, мир",
        "ქართული",
        "한국어 문장",
    ]
    tokenizer = byte_bpe(tmp_path, [*SOTU.read_text(encoding="utf-8").splitlines()[:100], *texts], size=size)
    kinds = tokenizer.piece_kinds()
    for text in texts:
        tokens = np.array(tokenizer.encode(text))
        alone = np.where(kinds[tokens] > PieceKind.UNSPACED, PieceKind.CONTINUATION, kinds[tokens])
        np.testing.assert_array_equal(token_kinds(kinds, tokens), alone)
        assert PieceKind.UNSPACED not in alone


@pytest.fixture(scope="module")
def unspaced(tmp_path_factory: pytest.TempPathFactory) -> dict[str, SentencePieceTokenizer]:
    folder, generator = tmp_path_factory.mktemp("unspaced"), np.random.default_rng(1)
    found = {}
    for name, text in TEXTS.items():
        slices = [text[start : start + 30] for start in generator.integers(0, len(text) - 10, 200)]
        path = train_vocabulary(folder / f"{name}.model", extra=slices, vocab_size=800, num_sub_iterations=1)
        found[name] = SentencePieceTokenizer.load(path)
    return found


@pytest.mark.parametrize("length", [64, 128, 512])
def test_a_vocabulary_in_which_no_piece_starts_a_word_has_units_of_one_piece(length: int) -> None:
    kinds = np.full(PIECES + 1, PieceKind.CONTINUATION, np.uint8)
    kinds[[0, 1, 2, 3, PIECES]] = PieceKind.SPECIAL
    tokens = np.random.default_rng(1).integers(4, PIECES, (800, length))
    tokens[:, 0], tokens[:, -1] = CLS_ID, SEP_ID
    mean_run, rate = runs_and_rate(kinds, tokens)
    assert rate == pytest.approx(0.15, abs=0.003)
    assert mean_run < 3


def test_a_piece_behind_one_without_spaces_opens_a_unit() -> None:
    special, piece, start, alone = PieceKind.SPECIAL, PieceKind.CONTINUATION, PieceKind.WORD_START, PieceKind.UNSPACED
    kinds = np.array([[special, start, piece, alone, alone, piece, piece, start, alone, special]], np.uint8)
    assert np.flatnonzero(find_units(kinds, whole_word=True).opens).tolist() == [1, 3, 4, 5, 7, 8]


@pytest.mark.parametrize(
    "piece", ["中", "▁中国", "の", "カ", "ｶ", "ー", "々", "ไทย", "ខ្មែរ", "ລາວ", "မြန်", "བོད་", "中A"]
)
def test_pieces_of_scripts_without_spaces_stand_alone(piece: str) -> None:
    assert kind_of_text(piece) == PieceKind.UNSPACED


@pytest.mark.parametrize(
    "piece", ["▁the", "ing", "é", "한국", "▁한", "я", "م", "।", "नम", "。", "、", "7", "▁", "...", "Ａ"]
)
def test_pieces_of_scripts_with_spaces_do_not(piece: str) -> None:
    assert kind_of_text(piece) != PieceKind.UNSPACED
