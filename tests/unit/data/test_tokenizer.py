"""The tokenizer: ids of the published checkpoints, word starts, and one clear error for every other file."""

import hashlib
import random
from pathlib import Path

import pytest

from megadeberta.data.tokenizer import PieceKind, SentencePieceTokenizer, starts_word
from megadeberta.errors import DataError
from tests.data_fixtures import SOTU, SPECIAL_IDS, SPECIAL_NAMES
from tests.unit.data.small_data import train_tokenizer


@pytest.fixture(scope="module")
def model_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train_tokenizer(tmp_path_factory.mktemp("spm"), **SPECIAL_IDS, **SPECIAL_NAMES)


@pytest.fixture(scope="module")
def tokenizer(model_file: Path) -> SentencePieceTokenizer:
    return SentencePieceTokenizer.load(model_file)


def test_special_ids_are_those_of_the_published_checkpoints(tokenizer: SentencePieceTokenizer) -> None:
    assert [tokenizer.piece(token_id) for token_id in range(4)] == ["[PAD]", "[CLS]", "[SEP]", "[UNK]"]
    assert tokenizer.num_pieces == 300
    assert tokenizer.mask_id == 300
    assert tokenizer.piece(300) == "[MASK]"
    assert tokenizer.vocab_size_needed == 301


def test_text_survives_encoding_and_decoding(tokenizer: SentencePieceTokenizer) -> None:
    text = "Fellow citizens of the Senate, and of the House"
    ids = tokenizer.encode(text)
    assert min(ids) > 3
    assert tokenizer.decode(ids) == text


def test_special_names_in_a_text_are_ordinary_characters(tokenizer: SentencePieceTokenizer) -> None:
    assert not {0, 1, 2, tokenizer.mask_id} & set(tokenizer.encode("[CLS] [MASK] [SEP] [PAD]"))


def test_hash_is_that_of_the_file(tokenizer: SentencePieceTokenizer, model_file: Path) -> None:
    assert tokenizer.sha256 == hashlib.sha256(model_file.read_bytes()).hexdigest()


def test_piece_kinds_mark_specials_word_starts_and_continuations(tokenizer: SentencePieceTokenizer) -> None:
    kinds = tokenizer.piece_kinds()
    assert kinds.shape == (tokenizer.vocab_size_needed,)
    assert kinds[:4].tolist() == [PieceKind.SPECIAL] * 4
    assert kinds[tokenizer.mask_id] == PieceKind.SPECIAL
    ids = tokenizer.encode("the Senate, and")
    shown = [(tokenizer.piece(token_id), kinds[token_id] == PieceKind.WORD_START) for token_id in ids]
    assert all(starts == (piece.startswith("\u2581") or piece == ",") for piece, starts in shown)
    assert [piece for piece, starts in shown if starts][-2:] == [",", "\u2581and"]


@pytest.mark.parametrize(
    "piece", ["\u2581", "\u2581the", ".", "$", "^", "\u3002", "\u2014", " ", "\t", "\u00a0", "\u200b"]
)
def test_words_start_at_spaces_and_single_symbols(piece: str) -> None:
    assert starts_word(piece)


@pytest.mark.parametrize("piece", ["ing", "a", "7", "...", "\u4e2d", "\u00e9", "\u20ac", "<0x0A>"])
def test_everything_else_continues_a_word(piece: str) -> None:
    assert not starts_word(piece)


def test_missing_file_says_how_to_train_one(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"cannot read the tokenizer .*nowhere\.model: No such file.*megadeberta prep"):
        SentencePieceTokenizer.load(tmp_path / "nowhere.model")


def test_a_folder_is_not_a_tokenizer(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"cannot read the tokenizer .*: Is a directory"):
        SentencePieceTokenizer.load(tmp_path)


def test_an_empty_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "spm.model").touch()
    with pytest.raises(DataError, match="is an empty file"):
        SentencePieceTokenizer.load(tmp_path / "spm.model")


def test_a_text_file_is_refused() -> None:
    with pytest.raises(DataError, match=r"sotu\.txt is not a SentencePiece model, or it is damaged.*--model_type"):
        SentencePieceTokenizer.load(SOTU)


def test_default_special_ids_are_refused_and_named(tmp_path: Path) -> None:
    with pytest.raises(
        DataError,
        match=r"other special ids: found 0=<unk> 1=<s> 2=</s> 3=\S+, with .* ids \(-1, 1, 2, 0\); needed 0=\[PAD\]",
    ):
        SentencePieceTokenizer.load(train_tokenizer(tmp_path))


def test_right_ids_with_default_names_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"found 0=<pad> 1=<s> 2=</s> 3=<unk>"):
        SentencePieceTokenizer.load(train_tokenizer(tmp_path, **SPECIAL_IDS))


@pytest.mark.parametrize("model_type", ["bpe", "char"])
def test_other_model_types_are_refused(tmp_path: Path, model_type: str) -> None:
    path = train_tokenizer(tmp_path, model_type=model_type, hard_vocab_limit=False, **SPECIAL_IDS, **SPECIAL_NAMES)
    with pytest.raises(DataError, match="is not a unigram model"):
        SentencePieceTokenizer.load(path)


def test_another_tokenizer_than_the_shards_is_refused(model_file: Path) -> None:
    with pytest.raises(DataError, match=r"the shards were made with another tokenizer: they name SHA-256 abababab.*"):
        SentencePieceTokenizer.load(model_file, expected_sha256="ab" * 32)


def test_300_damaged_files_give_a_data_error_or_a_whole_vocabulary(model_file: Path, tmp_path: Path) -> None:
    whole = model_file.read_bytes()
    generator = random.Random(1)
    damaged = tmp_path / "damaged.model"
    refused = 0
    for _ in range(300):
        content = bytearray(whole)
        place = generator.randrange(len(content))
        match generator.randrange(3):
            case 0:
                content[place] ^= 1 << generator.randrange(8)
            case 1:
                del content[place:]
            case 2:
                content[place:place] = generator.randbytes(9)
        damaged.write_bytes(content)
        try:
            loaded = SentencePieceTokenizer.load(damaged)
        except DataError:
            refused += 1
        else:
            assert len(loaded.piece_kinds()) == loaded.vocab_size_needed
            assert max(loaded.encode("Fellow citizens")) < loaded.num_pieces
    # The rest changed the score of a piece or a byte of the normaliser, which only the expected hash can tell.
    assert refused > 100
