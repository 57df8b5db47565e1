"""What is missing of the data, all at once, and what was probably meant."""

import shutil
from pathlib import Path
from typing import Any

import pytest

from megadeberta.config.data import DataConfig
from megadeberta.data.missing import (
    check_nothing_is_missing,
    check_prepared_folder,
    find_missing,
    is_unprepared,
    suggest_path,
)
from megadeberta.errors import DataError


@pytest.fixture
def corpora(tmp_path: Path, prepared: Path) -> Path:
    shutil.copytree(prepared, tmp_path / "corpora" / "sotu")
    return tmp_path / "corpora"


def _data(folder: Path, **changes: Any) -> DataConfig:
    paths = {"train": folder / "train", "valid": folder / "valid", "tokenizer": folder / "tokenizer" / "spm.model"}
    return DataConfig.model_validate(paths | {key: folder.parent / value for key, value in changes.items()})


@pytest.mark.parametrize(
    ("asked", "meant"),
    [
        ("sotu", "sotu/train"),
        ("sotuu/train", "sotu/train"),
        ("sotu/trian", "sotu/train"),
        ("stou/trian", "sotu/train"),
        ("sotu/train.bin", "sotu/train"),
        ("sotu/test/train", None),
        ("elsewhere/x", None),
    ],
)
def test_a_mistyped_prefix_names_the_token_file_that_was_meant(corpora: Path, asked: str, meant: str | None) -> None:
    (missing,) = find_missing(_data(corpora / "sotu", train=asked))
    assert missing.key == "data.train"
    assert missing.suggestion == (None if meant is None else corpora / meant)


def test_all_that_is_missing_is_named_in_one_line(corpora: Path) -> None:
    data = _data(corpora / "sotu", train="sotu/trian", valid="sotu/none", tokenizer="sotu/tokenizer/spm.modl")
    with pytest.raises(DataError) as caught:
        check_nothing_is_missing(data)
    text = str(caught.value)
    assert f"data.train={corpora}/sotu/trian: trian.bin, .idx and .json do not exist, did you mean" in text
    assert f"data.valid={corpora}/sotu/none: none.bin" in text
    assert f"spm.modl: does not exist, did you mean {corpora}/sotu/tokenizer/spm.model?" in text
    assert "\n" not in text


def test_a_source_is_named_by_its_key_and_half_a_token_file_by_what_it_lacks(corpora: Path) -> None:
    (corpora / "sotu" / "train.idx").unlink()
    data = DataConfig.model_validate(
        {
            "train": {"en": {"prefix": corpora / "sotu/train"}, "de": {"prefix": corpora / "sotu/valid"}},
            "tokenizer": corpora / "sotu/tokenizer",
        }
    )
    first, second = find_missing(data)
    assert str(first).startswith(f"data.train.en={corpora}/sotu/train: train.idx of it does not exist")
    assert (second.what, second.suggestion) == ("is a folder", corpora / "sotu/tokenizer/spm.model")


def test_nothing_at_all_is_another_thing_than_something_missing(corpora: Path) -> None:
    assert is_unprepared(_data(corpora / "none"))
    assert not is_unprepared(_data(corpora / "none", tokenizer="sotu/tokenizer/spm.model"))
    assert not is_unprepared(_data(corpora / "sotuu"))
    check_nothing_is_missing(_data(corpora / "sotu"))
    (corpora / "texts").mkdir()
    assert is_unprepared(_data(corpora / "texts")), "a folder for it may be there already"
    (corpora / "texts" / "speeches.txt").write_text("One document.")
    assert not is_unprepared(_data(corpora / "texts")), "the text itself was given"
    (corpora / "texts" / "tokenizer").mkdir()
    assert is_unprepared(_data(corpora / "texts")), "`megadeberta prep` is at work in it"


def test_what_is_no_prepared_folder_is_told_from_one(corpora: Path) -> None:
    check_prepared_folder(corpora / "sotu")
    with pytest.raises(DataError, match=r"sotu/train does not exist; .*did you mean \S*/sotu\?$"):
        check_prepared_folder(corpora / "sotu" / "train")
    with pytest.raises(DataError, match=r"tokenizer holds no train\.bin.*run `megadeberta prep \S+ --vocab-size"):
        check_prepared_folder(corpora / "sotu" / "tokenizer")


def test_a_path_with_a_mistake_in_every_part_is_found(corpora: Path) -> None:
    assert suggest_path(corpora / "sotuu" / "tokeniser" / "spm.mdel") == corpora / "sotu/tokenizer/spm.model"
    assert suggest_path(Path("/nowhere-of-that-name/x")) is None
