"""data.folder stands for three paths; model.vocab_size auto for a number; a description is of its own file."""

from pathlib import Path
from typing import Any

import pytest

from megadeberta.config.data import DataConfig
from megadeberta.config.load import load_run_config, parse_run_config
from megadeberta.errors import ConfigError, DataError
from megadeberta.preflight.run import load_recipe
from tests.models import recipe, write_json


def _with_folder(folder: object, **data: object) -> dict[str, Any]:
    values = recipe()
    values["data"] = {"folder": str(folder), "sequence_length": 64, **data}
    return values


def test_folder_stands_for_train_valid_and_tokenizer(tmp_path: Path) -> None:
    data = load_run_config(write_json(tmp_path / "r.json", _with_folder("corpora/mine"))).data
    assert data.train == Path("corpora/mine/train")
    assert data.valid == Path("corpora/mine/valid")
    assert data.tokenizer == Path("corpora/mine/tokenizer/spm.model")


def test_folder_that_was_prepared_without_validation_has_none(tmp_path: Path) -> None:
    (tmp_path / "train.json").touch()
    assert load_run_config(write_json(tmp_path / "r.json", _with_folder(tmp_path))).data.valid is None
    (tmp_path / "valid.json").touch()
    assert load_run_config(tmp_path / "r.json").data.valid == tmp_path / "valid"
    assert load_run_config(tmp_path / "r.json", ["data.valid=null"]).data.valid is None


def test_resolved_recipe_has_the_paths_and_is_a_recipe_again(tmp_path: Path) -> None:
    config = load_run_config(write_json(tmp_path / "r.json", _with_folder("corpora/mine")))
    dumped = config.model_dump(mode="json")
    assert "folder" not in dumped["data"]
    assert parse_run_config(dumped, source="dump") == config


def test_folder_finds_a_tokenizer_of_another_kind(tmp_path: Path) -> None:
    other = tmp_path / "tokenizer" / "tokenizer.json"
    other.parent.mkdir()
    other.write_text("{}")
    assert DataConfig(folder=tmp_path).tokenizer == other


@pytest.mark.parametrize("key", ["train", "valid", "tokenizer"])
def test_folder_beside_one_of_its_paths_is_refused(tmp_path: Path, key: str) -> None:
    with pytest.raises(ConfigError, match=rf"r.json: data.folder=a and data.{key}=b are given"):
        load_run_config(write_json(tmp_path / "r.json", _with_folder("a", **{key: "b"})))
    path = write_json(tmp_path / "r.json", recipe())
    for overrides in (["data.folder=a", f"data.{key}=b"], [f"data.{key}=b", "data.folder=a"]):
        with pytest.raises(ConfigError, match=rf"--set data.folder: data.folder=a and data.{key}=b are given"):
            load_run_config(path, overrides)


def test_folder_takes_the_place_of_the_paths_of_a_parent_and_of_a_file(tmp_path: Path) -> None:
    write_json(tmp_path / "parent.json", recipe())
    child = write_json(tmp_path / "child.json", {"extends": "parent.json", "data": {"folder": "mine"}})
    assert load_run_config(child).data.train == Path("mine/train")
    assert load_run_config(tmp_path / "parent.json", ["data.folder=mine"]).data.tokenizer.parent == Path(
        "mine/tokenizer"
    )
    grandchild = write_json(tmp_path / "g.json", {"extends": "child.json", "data": {"train": "other/train"}})
    data = load_run_config(grandchild).data
    assert (data.train, data.valid) == (Path("other/train"), Path("mine/valid"))


def test_folder_that_is_no_path_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"data.folder=3 is no path"):
        load_run_config(write_json(tmp_path / "r.json", recipe()), ["data.folder=3"])


def test_automatic_vocabulary_is_that_of_the_tokenizer_rounded_up(tmp_path: Path, prepared: Path) -> None:
    path = write_json(tmp_path / "r.json", _with_folder(prepared))
    assert load_recipe(path, ["model.vocab_size=auto"]).model.vocab_size == 1024
    assert load_recipe(path, ["model.vocab_size=1001"]).model.vocab_size == 1001


def test_automatic_vocabulary_without_a_tokenizer_says_what_to_give(tmp_path: Path) -> None:
    path = write_json(tmp_path / "r.json", _with_folder(tmp_path / "none"))
    with pytest.raises(DataError, match=r"vocab_size=auto: the tokenizer .*none/tokenizer/spm.model does not exist"):
        load_recipe(path, ["model.vocab_size=auto"])
    with pytest.raises(ConfigError, match=r"set data.folder or data.tokenizer"):
        load_recipe(path, ["model.vocab_size=auto", 'data={"train": "x"}'])


def test_description_is_not_inherited(tmp_path: Path) -> None:
    write_json(tmp_path / "parent.json", recipe() | {"description": "of the parent"})
    child = write_json(tmp_path / "child.json", {"extends": "parent.json", "name": "child"})
    assert load_run_config(tmp_path / "parent.json").description == "of the parent"
    assert load_run_config(child).description == ""
