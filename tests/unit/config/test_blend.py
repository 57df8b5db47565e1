"""What a recipe may say about several sources, and what it is told otherwise."""

from typing import Any

import pytest

from megadeberta.config.data import DataConfig
from megadeberta.config.load import load_run_config, parse_run_config
from megadeberta.errors import ConfigError
from tests.models import RECIPE, recipe, write_json


def _sources(**settings: dict[str, Any]) -> dict[str, Any]:
    return {name: {"prefix": f"shards/{name}", **values} for name, values in settings.items()}


def test_sources_are_named_in_recipes_and_reached_by_overrides(tmp_path: Any) -> None:
    data = {"train": _sources(en={"weight": 2}, de={"weight": 1}), "valid": {"en": "shards/valid"}}
    path = write_json(tmp_path / "blend.json", recipe(data=data))
    config = load_run_config(path, ["data.train.de.weight=0.5"]).data
    assert config.is_blend and config.train["de"].weight == 0.5  # type: ignore[index]
    assert {name: str(prefix) for name, prefix in config.train_prefixes.items()} == {
        "de": "shards/de",
        "en": "shards/en",
    }
    assert list(config.valid_prefixes) == ["en"]
    assert DataConfig.model_validate_json(config.model_dump_json()) == config


def test_one_prefix_is_a_source_without_a_name() -> None:
    config = parse_run_config(RECIPE, source="r").data
    assert (config.is_blend, list(config.train_prefixes), config.valid_prefixes) == (False, [""], {})


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"train": _sources(en={"wieght": 1})}, r"unknown key data\.train\.en\.wieght; did you mean 'weight'\?"),
        ({"train": _sources(en={"weight": 0})}, r"data\.train\.en\.weight=0: Input should be greater than 0"),
        ({"train": _sources(en={"epochs": 0})}, r"data\.train\.en\.epochs=0: Input should be greater than 0"),
        ({"train": _sources(en={"tokens": 0})}, r"data\.train\.en\.tokens=0: Input should be greater than 0"),
        ({"train": {"en": {"weight": 1}}}, r"data\.train\.en\.prefix is required and missing"),
        ({"train": {}}, r"data\.train=\{\}: must not be empty"),
        ({"train": 5}, r"data\.train=5: must be the path of a file"),
        ({"valid": {"a": 5}}, r"data\.valid\.a=5: must be the path of a file"),
        ({"train": _sources(**{"e.n": {}})}, r"data\.train\.e\.n.*must match"),
        (
            {"train": _sources(en={"weight": 1}, de={}), "temperature": 3},
            r"data\.temperature=3 and data\.train\.en\.weight are given: .*keep one of them",
        ),
        ({"train": _sources(en={}), "temperature": 0}, r"data\.temperature=0: Input should be greater than 0"),
        ({"temperature": 3}, r"data\.temperature=3 is for several sources, and data\.train is one prefix"),
        (
            {"train": _sources(en={"weight": 1, "epochs": 2})},
            r"data\.train\.en: weight and epochs are given; keep one of them",
        ),
        (
            {"train": _sources(en={"weight": 1}, de={"tokens": 5})},
            r"all sources take the same of weight, epochs and tokens; found de: tokens, en: weight",
        ),
    ],
)
def test_a_wrong_blend_names_the_key_and_what_to_do(data: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse_run_config(recipe(data=data), source="r")
