"""One style of JSON for all recipes."""

import json
from pathlib import Path

import pytest

from tools import format_recipes
from tools.format_recipes import format_recipe


def test_shipped_recipes_are_in_the_one_style() -> None:
    assert format_recipes.main(["--check"]) == 0


def test_short_values_share_a_line_and_long_ones_do_not() -> None:
    values = {"name": "a", "optimizer": {"lr": 2e-4}, "model": {f"a_rather_long_name_{n}": n for n in range(5)}}
    assert format_recipe(json.dumps(values)) == (
        '{\n  "name": "a",\n  "optimizer": {"lr": 0.0002},\n  "model": {\n'
        + ",\n".join(f'    "a_rather_long_name_{n}": {n}' for n in range(5))
        + "\n  }\n}\n"
    )


def test_style_is_stable_and_keeps_values_and_their_order() -> None:
    text = json.dumps({"b": [1, {"x": "\u00b5" * 60}, ["y" * 60]], "a": {}, "c": [], "d": None, "e": [True, 1.5]})
    styled = format_recipe(text)
    assert format_recipe(styled) == styled
    assert json.dumps(json.loads(styled)) == text


def test_wrong_style_is_reported_and_mended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(format_recipes, "FOLDER", tmp_path)
    path = tmp_path / "a.json"
    path.write_text('{"name":\n"a"}')
    assert format_recipes.main(["--check"]) == 1
    assert "a.json" in capsys.readouterr().err
    assert path.read_text() == '{"name":\n"a"}'
    assert format_recipes.main([]) == 0
    assert path.read_text() == '{\n  "name": "a"\n}\n'
