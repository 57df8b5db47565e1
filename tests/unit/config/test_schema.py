"""JSON Schema, settings page, help and documents name the settings that the code has, and no others."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import typer
from pydantic import BaseModel
from typer.testing import CliRunner

from megadeberta.cli import app
from megadeberta.config.data import DataConfig
from megadeberta.config.deepspeed_block import KNOWN_KEYS
from megadeberta.config.load import load_run_config
from megadeberta.config.recipes import FOLDER
from megadeberta.config.run import RunConfig
from megadeberta.config.schema import recipe_schema
from megadeberta.config.settings_page import settings_page
from tests.models import recipe, write_json

ROOT = Path(__file__).parents[3]
SCHEMA = recipe_schema()
VALIDATOR = jsonschema.Draft202012Validator(SCHEMA)
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def _fields(model: type[BaseModel], start: str = "") -> Iterator[tuple[str, Any]]:
    for name, field in model.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from _fields(field.annotation, f"{start}{name}.")
        else:
            yield f"{start}{name}", field


SETTINGS = dict(_fields(RunConfig))


def _problems(values: dict[str, Any]) -> list[str]:
    return [error.message for error in VALIDATOR.iter_errors(values)]


def test_the_schema_is_one() -> None:
    jsonschema.Draft202012Validator.check_schema(SCHEMA)


@pytest.mark.parametrize("path", sorted(FOLDER.rglob("*.json")), ids=lambda path: path.stem)
def test_every_shipped_recipe_satisfies_it(path: Path) -> None:
    assert _problems(json.loads(path.read_text())) == []


@pytest.mark.parametrize("path", sorted(FOLDER.rglob("*.json")), ids=lambda path: path.stem)
def test_every_resolved_recipe_satisfies_it(path: Path) -> None:
    assert _problems(load_run_config(path).model_dump(mode="json")) == []


@pytest.mark.parametrize(
    "change",
    [
        {"data": {"folder": "corpora/mine"}, "model": {"vocab_size": "auto"}},
        {"$schema": "./recipe.schema.json", "extends": "quickstart"},
        {"data": {"train": {"en": {"prefix": "a", "weight": 2}}, "valid": {"en": "b"}}},
        {"model": {"pos_att_type": "c2p|p2c"}},
    ],
)
def test_what_the_reader_takes_satisfies_it(change: dict[str, Any]) -> None:
    assert _problems(change) == []


@pytest.mark.parametrize(
    "change",
    [
        {"trainning": {}},
        {"model": {"num_heads": 4}},
        {"model": {"vocab_size": "automatic"}},
        {"optimizer": {"lr": -1}},
        {"schedule": {"name": "lineer"}},
        {"training": {"steps": "many"}},
        {"data": {"sequence_length": 4}},
        {"data": {"train": {"en": {"weight": 2}}}},
        {"deepspeed": {"zero_optimisation": {}}},
        {"extends": 3},
    ],
)
def test_what_the_reader_refuses_does_not(change: dict[str, Any]) -> None:
    assert _problems(change) != []


def test_command_prints_schema_and_page() -> None:
    assert json.loads(CliRunner().invoke(app, ["recipes", "--schema"]).stdout) == SCHEMA
    assert CliRunner().invoke(app, ["recipes", "--settings"]).output == settings_page()


def test_every_setting_is_described_in_the_schema() -> None:
    assert [name for name, field in SETTINGS.items() if not field.description] == []
    for name in SETTINGS:
        node = SCHEMA
        for key in name.split("."):
            node = (
                node["properties"][key]
                if "properties" in node
                else SCHEMA["$defs"][node["$ref"][8:]]["properties"][key]
            )
        assert node["description"], name


def test_settings_page_is_what_the_code_says() -> None:
    page = (ROOT / "docs" / "settings.md").read_text(encoding="utf-8")
    assert page == settings_page(), "run `megadeberta recipes --settings > docs/settings.md`"
    for name in SETTINGS:
        assert f"- `{name.rpartition('.')[2]}` (" in page, name
    assert max(map(len, page.splitlines())) <= 80


def _named_settings(text: str) -> set[str]:
    """``section.key`` wherever it begins with a section: in ``--set``, in backticks, in prose."""
    sections = [name for name, field in RunConfig.model_fields.items() if f"{name}." in "".join(SETTINGS)]
    words = re.findall(rf"(?<![\w./-])((?:{'|'.join(sections)})(?:\.[a-z][a-z0-9_]*)+)(?![\w(/*])", text)
    files = (".json", ".md", ".py", ".safetensors", ".bin", ".txt", ".jsonl", ".idx", ".onnx")
    return {word for word in words if not word.endswith(files)}


def _unknown(text: str) -> set[str]:
    known = {*SETTINGS, *(name.rpartition(".")[0] for name in SETTINGS)}
    starts = tuple(f"{name}." for name, field in SETTINGS.items() if field.annotation is dict or name == "data.train")
    free = (*starts, "objective.options.", "data.valid.")
    return {name for name in _named_settings(text) - known if not name.startswith(free)}


def test_settings_that_the_help_names_exist() -> None:
    found: dict[str, set[str]] = {}

    def visit(command: Any, name: str) -> None:
        help_text = " ".join([command.help or "", *(getattr(option, "help", "") or "" for option in command.params)])
        found[name] = _unknown(help_text)
        for child, inner in getattr(command, "commands", {}).items():
            visit(inner, f"{name} {child}")

    visit(typer.main.get_command(app), "megadeberta")
    assert len(found) > 20
    assert {name: keys for name, keys in found.items() if keys} == {}


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_overrides_that_a_document_shows_exist(document: Path) -> None:
    text = document.read_text(encoding="utf-8")
    given = set(re.findall(r"--set ['\"]?([a-z_]+(?:\.[A-Za-z0-9_]+)+)=", text))
    blocks = {name for name in given if name.startswith("deepspeed.")}
    assert {name.split(".")[1] for name in blocks} <= KNOWN_KEYS
    assert {name for name in given - blocks if _unknown(f" {name} ")} == set()


@pytest.mark.parametrize("asked", ["data.foldr=x", "data.trian=x"])
def test_the_nearest_key_of_the_data_section_is_named(tmp_path: Path, asked: str) -> None:
    wanted = "folder" if "foldr" in asked else "train"
    with pytest.raises(Exception, match=f"did you mean '{wanted}'"):
        load_run_config(write_json(tmp_path / "r.json", recipe()), [asked])
    assert wanted in DataConfig.model_fields


def test_descriptions_of_settings_begin_small_names_aside_and_end_without_a_point() -> None:
    names = {"NVIDIA", "CPU", "Python", "DeepSpeed's"}
    for name, about in SETTINGS.items():
        text = about.description
        assert text and not text.endswith(".") and (not text[0].isupper() or text.split()[0] in names), name
