"""Write the recipes of ds_configs in their one style, or with --check only say which are not.

    python tools/format_recipes.py [--check]

Two spaces; an object or list below the top is on one line where it fits; keys stay in their order.
"""

import json
import sys
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parents[1] / "ds_configs"
WIDTH = 100


def format_recipe(text: str) -> str:
    """The same recipe in the one style."""
    return _lines(json.loads(text), before=0, indent=0) + "\n"


def _lines(value: Any, *, before: int, indent: int) -> str:
    """``value`` from column ``before`` on; what does not fit goes on in lines with ``indent`` spaces more."""
    line = json.dumps(value, ensure_ascii=False)
    if not isinstance(value, dict | list) or not value or (indent and before + len(line) < WIDTH):
        return line
    named = value.items() if isinstance(value, dict) else ((None, item) for item in value)
    parts = []
    for name, item in named:
        start = " " * (indent + 2) + ("" if name is None else f"{json.dumps(name)}: ")
        parts.append(start + _lines(item, before=len(start), indent=indent + 2))
    opening, closing = "{}" if isinstance(value, dict) else "[]"
    return f"{opening}\n" + ",\n".join(parts) + f"\n{' ' * indent}{closing}"


def main(words: list[str]) -> int:
    """0 where nothing had to change."""
    wrong = []
    for path in sorted(FOLDER.rglob("*.json")):
        text = path.read_text(encoding="utf-8")
        if text != (styled := format_recipe(text)):
            wrong.append(str(path))
            if "--check" not in words:
                path.write_text(styled, encoding="utf-8")
    if wrong and "--check" in words:
        sys.stderr.write(f"not in the style of tools/format_recipes.py; run `make format`: {', '.join(wrong)}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
