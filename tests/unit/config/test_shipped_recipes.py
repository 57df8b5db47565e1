"""Recipes by name, from any folder: on the command line and in extends."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from megadeberta.cli import app
from megadeberta.config.load import load_run_config
from megadeberta.config.recipes import FOLDER, find_recipe, recipe_names, words_for_nodes
from megadeberta.errors import ConfigError
from megadeberta.launcher.hosts.node_check import check
from tests.models import RECIPE, write_json


@pytest.fixture(autouse=True)
def empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_names_are_those_of_the_files_and_clusters_come_last() -> None:
    names = recipe_names()
    assert len(names) == len(list(FOLDER.rglob("*.json")))
    assert {"quickstart", "deberta-v3-base", "clusters/deberta-large-1x8"} <= set(names)
    assert [name.startswith("clusters/") for name in names] == sorted(name.startswith("clusters/") for name in names)


@pytest.mark.parametrize("name", recipe_names())
def test_recipe_is_found_by_name_in_any_folder(name: str) -> None:
    assert load_run_config(Path(name)).name == name.split("/")[-1]


def test_file_wins_over_a_recipe_of_the_same_name_and_a_folder_does_not(empty_folder: Path) -> None:
    (empty_folder / "quickstart").mkdir()
    assert load_run_config(Path("quickstart")).name == "quickstart"
    write_json(empty_folder / "small-mlm", RECIPE)
    assert load_run_config(Path("small-mlm")).name == "tiny"


def test_file_that_is_a_pipe_is_read(empty_folder: Path) -> None:
    assert find_recipe(Path("/dev/null")) == Path("/dev/null")


@pytest.mark.parametrize(
    ("asked", "hint"),
    [
        ("deberta-v3-bse", r"; did you mean deberta-v3-base\?"),
        ("quickstart.json", r"; did you mean quickstart\?"),
        ("ds_configs/quickstart.json", r"; did you mean quickstart\?"),
        ("ds_configs/clusters/deberta-large-1x8.json", r"; did you mean clusters/deberta-large-1x8\?"),
        ("clusters/deberta-large-1x", r"; did you mean clusters/deberta-large-1x8\?"),
        ("nothing.json", ";"),
        ("nowhere/nothing.json", "; the folder nowhere does not exist either;"),
    ],
)
def test_miss_names_the_nearest_recipe_and_how_to_see_all(asked: str, hint: str) -> None:
    message = rf"^recipe {asked} does not exist{hint} `megadeberta recipes` lists the shipped ones$"
    with pytest.raises(ConfigError, match=message):
        load_run_config(Path(asked))


def test_miss_prefers_a_file_beside_it(empty_folder: Path) -> None:
    write_json(empty_folder / "quickstart-2.json", RECIPE)
    with pytest.raises(ConfigError, match=r"did you mean quickstart-2\.json\?"):
        load_run_config(Path("quickstart2.json"))


def test_extends_takes_a_name_or_a_path_from_the_file_on(empty_folder: Path) -> None:
    folder = empty_folder / "mine"
    folder.mkdir()
    child = {"extends": "deberta-v3-base", "name": "mine", "training": {"output_dir": "runs/mine"}}
    config = load_run_config(write_json(folder / "mine.json", child))
    assert (config.name, config.objective.name, config.model.hidden_size) == ("mine", "rtd", 768)
    write_json(folder / "deberta-v3-base", RECIPE)
    assert load_run_config(folder / "mine.json").model.hidden_size == 64


def test_extends_of_a_recipe_that_does_not_exist_names_both_and_the_nearest(empty_folder: Path) -> None:
    path = write_json(empty_folder / "mine.json", {"extends": "deberta-v3-bas"})
    with pytest.raises(
        ConfigError,
        match=rf"^{path}: extends: recipe {empty_folder}/deberta-v3-bas does not exist; did you mean deberta-v3-base\?",
    ):
        load_run_config(path)


def test_other_machines_get_a_name_or_an_absolute_path(empty_folder: Path) -> None:
    write_json(empty_folder / "mine.json", RECIPE)
    assert words_for_nodes(Path("mine.json")) == str(empty_folder / "mine.json")
    assert words_for_nodes(Path("clusters/deberta-large-1x8")) == "clusters/deberta-large-1x8"


def test_check_of_a_machine_takes_a_name() -> None:
    answer = check(Path("quickstart"), [], world_size=2)
    assert "corpora/wikitext2-shards/train" in str(answer["error"])


def test_commands_take_a_name() -> None:
    for words in (
        ["train", "quickstart", "--dry-run"],
        ["plan", "clusters/deberta-large-1x8", "--gpus", "8", "--memory", "80", "--limit", "1"],
        ["launch", "quickstart", "--slurm", "1", "--ranks", "2"],
    ):
        done = CliRunner().invoke(app, words, env={"COLUMNS": "200"})
        assert done.exit_code == 0, done.output
    assert "megadeberta train quickstart " in done.output


def test_slurm_script_names_a_file_by_its_absolute_path(empty_folder: Path) -> None:
    write_json(empty_folder / "mine.json", RECIPE)
    done = CliRunner().invoke(app, ["launch", "mine.json", "--slurm", "1", "--ranks", "2", "--set", "optimizer.lr=1"])
    command = " ".join(done.output.replace("\\\n", "").split())
    assert f"megadeberta train {empty_folder}/mine.json --set optimizer.lr=1 & " in command


def test_list_has_a_line_for_every_recipe_with_the_start_of_its_description() -> None:
    lines = CliRunner().invoke(app, ["recipes"]).output.splitlines()
    assert [line.split()[0] for line in lines] == recipe_names()
    assert "A small v3-style model on WikiText-2" in next(line for line in lines if line.startswith("quickstart "))
    for name in recipe_names():
        assert json.loads((FOLDER / f"{name}.json").read_text())["description"], f"{name} has no description"
