"""A recipe in JSON or YAML: the same values, and errors with file and line."""

import json
import random
from pathlib import Path

import pytest
import yaml

from megadeberta.config.load import load_run_config, read_recipe
from megadeberta.config.recipe_text import parse_recipe, recipe_text
from megadeberta.config.recipes import FOLDER
from megadeberta.errors import ConfigError
from tests.models import RECIPE, recipe


@pytest.mark.parametrize("ending", [".yaml", ".yml"])
def test_a_yaml_recipe_is_the_json_one_with_comments(tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"tiny{ending}"
    path.write_text("# a comment\n" + recipe_text(RECIPE, path))
    (tmp_path / "tiny.json").write_text(json.dumps(RECIPE))
    assert load_run_config(path) == load_run_config(tmp_path / "tiny.json")


def test_yaml_and_json_extend_each_other(tmp_path: Path) -> None:
    (tmp_path / "base.yaml").write_text(recipe_text(RECIPE, tmp_path / "base.yaml"))
    (tmp_path / "child.json").write_text('{"extends": "base.yaml", "name": "child"}')
    (tmp_path / "grandchild.yaml").write_text("extends: child.json\noptimizer: {lr: 5e-4}\n")
    assert load_run_config(tmp_path / "grandchild.yaml").optimizer.lr == 5e-4
    assert read_recipe(tmp_path / "grandchild.yaml")["name"] == "child"


@pytest.mark.parametrize("path", sorted(FOLDER.rglob("*.json")), ids=lambda path: path.stem)
def test_shipped_recipes_come_back_from_yaml(path: Path) -> None:
    values = json.loads(path.read_text())
    assert parse_recipe(recipe_text(values, Path("x.yaml")), Path("x.yaml")) == values


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("5e-4", 5e-4),
        ("1.", 1.0),
        (".5", 0.5),
        ("1_000_000", 1_000_000),
        ("010", 10),
        ("no", "no"),
        ("on", "on"),
        ("1:30", "1:30"),
        ("2026-01-01", "2026-01-01"),
        ("null", None),
        ("~", None),
        ("true", True),
        ('"5"', "5"),
        ("0x10", "0x10"),
    ],
)
def test_plain_yaml_values_are_those_of_json(text: str, value: object) -> None:
    found = parse_recipe(f"key: {text}\n", Path("x.yaml"))["key"]
    assert (found, type(found)) == (value, type(value))


def test_written_yaml_means_the_same_to_yaml_1_1(tmp_path: Path) -> None:
    values = {"a": "no", "b": "1e3", "c": "12:30", "d": 1e-6, "e": None, "f": True, "g": "010", "h": [1, 2.5]}
    text = recipe_text(values, Path("x.yml"))
    assert parse_recipe(text, Path("x.yml")) == values
    assert yaml.safe_load(text) == values


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("x.json", '{"a": 1,}', r"x\.json:1: not valid JSON: .*; JSON has no comma behind the last value"),
        ("x.json", '{\n// c\n"a": 1}', r"x\.json:2: not valid JSON: .*; JSON has no comments"),
        ("x.json", "{'a': 1}", r"JSON has double quotes"),
        ("x.json", '{"a": True}', r"JSON writes true, false and null"),
        ("x.json", '{"a": 1, "a": 2}', r"key 'a' is given twice"),
        ("x.yaml", "a: 1\nb: [1\n", r"x\.yaml:3: not valid YAML"),
        ("x.yaml", "a: 1\na: 2\n", r"x\.yaml:2: not valid YAML: key 'a' is given twice"),
        ("x.yaml", "1: 2\n", r"key 1 is no text"),
        ("x.yaml", "a: !!python/object:os.system x\n", r"x\.yaml:1: not valid YAML: could not determine a constructor"),
        ("x.yaml", "a:\tb: c\n", r"x\.yaml:1: not valid YAML"),
        ("x.yaml", "a: \x00\n", r"x\.yaml: not a usable recipe"),
        ("x.yaml", "- a\n", r"one YAML mapping, found list"),
        ("x.yaml", "", r"x.yaml: is an empty file"),
    ],
)
def test_what_is_wrong_is_said_with_file_and_line(tmp_path: Path, name: str, text: str, message: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(ConfigError, match=message):
        read_recipe(tmp_path / name)


def test_damaged_text_is_never_another_error(tmp_path: Path) -> None:
    generator = random.Random(7)
    texts = {name: recipe_text(recipe(), Path(name)) for name in ("x.json", "x.yaml")}
    for name, whole in texts.items():
        for _ in range(150):
            text = list(whole)
            for _ in range(generator.randint(1, 4)):
                text[generator.randrange(len(text))] = generator.choice("{}[]:,\"'&*!|>%@`#-? \n\t\x01é0")
            (tmp_path / name).write_text("".join(text))
            try:
                load_run_config(tmp_path / name)
            except ConfigError as error:
                assert name in str(error)
