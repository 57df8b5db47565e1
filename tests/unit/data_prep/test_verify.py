"""`verify` on a finished set: sound, and each thing that can be wrong with it."""

import json
import shutil
from pathlib import Path

import pytest

from megadeberta.data_prep.verify import verify_set
from megadeberta.errors import DataError


@pytest.fixture
def copied(prepared: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(prepared, tmp_path / "set"))


def test_a_finished_set_is_sound(prepared: Path) -> None:
    verified = verify_set(prepared)
    assert set(verified.shards) == {"train", "valid"}
    assert verified.tokenizer.num_pieces == 1000
    assert verified.shards["train"].max_token_id < 1000
    assert verified.shards["train"].num_documents + verified.shards["valid"].num_documents == 25


def flip(path: Path, at: int) -> None:
    payload = bytearray(path.read_bytes())
    payload[at] ^= 4
    path.write_bytes(payload)


@pytest.mark.parametrize("name", ["train.bin", "valid.bin", "train.idx", "valid.idx"])
@pytest.mark.parametrize("at", [0, 40, -1])
def test_a_flipped_bit_is_found(copied: Path, name: str, at: int) -> None:
    flip(copied / name, at)
    with pytest.raises(DataError, match=rf"{name[:5]}\.(bin|idx): "):
        verify_set(copied)


def test_another_tokenizer_is_named(copied: Path) -> None:
    model = copied / "tokenizer" / "spm.model"
    # Adds an unknown protobuf field: still a sound model, but not the one the shards were made with.
    model.write_bytes(model.read_bytes() + b"\xf8\x7f\x01")
    with pytest.raises(DataError, match=r"spm\.model: SHA-256 .* was made with .* put that file back"):
        verify_set(copied)


def test_a_missing_tokenizer_is_named(copied: Path) -> None:
    (copied / "tokenizer" / "spm.model").unlink()
    with pytest.raises(DataError, match=r"spm\.model"):
        verify_set(copied)


def test_a_token_beyond_the_tokenizer_is_named(copied: Path) -> None:
    for split in ("train", "valid"):
        path = copied / f"{split}.json"
        path.write_text(json.dumps(json.loads(path.read_bytes()) | {"tokenizer_pieces": 900}))
    with pytest.raises(DataError, match=r"1000 pieces; .*train was made with .* 900 pieces"):
        verify_set(copied)


@pytest.mark.parametrize("suffix", ["bin", "idx", "json"])
def test_a_valid_shard_with_a_file_missing_is_not_overlooked(copied: Path, suffix: str) -> None:
    (copied / f"valid.{suffix}").unlink()
    with pytest.raises(DataError, match=rf"valid\.{suffix}: not found"):
        verify_set(copied)


def test_a_folder_that_is_none_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"nowhere does not exist; give the --output folder of `megadeberta prep`"):
        verify_set(tmp_path / "nowhere")
    (tmp_path / "file").write_text("x")
    with pytest.raises(DataError, match=r"file is a file; give the --output folder of `megadeberta prep`"):
        verify_set(tmp_path / "file")
    with pytest.raises(DataError, match=r"holds no train\.bin, \.idx and \.json"):
        verify_set(tmp_path)
