"""The expected times of docs/recipes.md are what `megadeberta plan` says."""

import json
import re
import shlex
from pathlib import Path

import pytest
from typer.testing import CliRunner

from megadeberta.cli import app

PAGE = Path(__file__).parents[3] / "docs" / "recipes.md"
_ROW = re.compile(r"^\| [^|]+ \| [^|]+ \| `megadeberta (plan [^`]+)` \| ([^|]+) \|$", flags=re.MULTILINE)
ROWS = _ROW.findall(PAGE.read_text(encoding="utf-8"))


def _shown(days: float) -> str:
    hours = days * 24
    if hours < 1:
        return f"{hours * 60:.0f} minutes"
    return f"{hours:.1f} hours" if hours < 48 else f"{days:.1f} days"


def test_the_page_has_a_row_for_each_recipe_that_reproduces_something() -> None:
    recipes = [shlex.split(command)[1] for command, _ in ROWS]
    assert recipes == [
        "deberta-base-ablation",
        "camembertav2-base",
        "camembertav2-base",
        "babylm-10m",
        "babylm-100m",
        "adapt-v3-base",
    ]


@pytest.mark.parametrize(("command", "expected"), ROWS)
def test_the_expected_time_is_that_of_plan(command: str, expected: str) -> None:
    done = CliRunner().invoke(app, [*shlex.split(command), "--json"])
    assert done.exit_code == 0, done.output
    assert _shown(json.loads(done.stdout)["run"]["days_with_failures"]) == expected
