"""The rooms of docs/architecture.md: who may import whom, how long a file may be, what never loads torch."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SHIPPED = ("megadeberta", "launcher", "data_prep")
LONGEST_FILE = 400
LONG_FUNCTION, MOST_LONG_FUNCTIONS = 40, 15

# Room -> rooms it may import (None: all). The longest prefix of a module's name is its room.
FIRST_ROOMS = ("config", "errors", "host", "memory", "remote", "storage", "topology")
CONFIG = {f"megadeberta.{room}" for room in FIRST_ROOMS} | {"megadeberta"}
BACKENDS = "megadeberta.ops.attention.backends"  # facts about attention, without its code
LAYERS = CONFIG | {"megadeberta.layers", BACKENDS}
DIRECTIONS: dict[str, set[str] | None] = {
    "megadeberta": set(),
    "megadeberta.errors": set(),
    "megadeberta.host": set(),
    "megadeberta.batch": LAYERS,
    "megadeberta.memory": set(),
    "megadeberta.storage": {"megadeberta.errors"},
    "megadeberta.topology": {"megadeberta.errors"},
    "megadeberta.remote": {"megadeberta.errors"},
    "megadeberta.config": {"megadeberta.errors", "megadeberta.remote", "megadeberta.topology"},
    BACKENDS: {"megadeberta.errors"},
    "megadeberta.ops": {BACKENDS},
    "megadeberta.layers": CONFIG | {BACKENDS, "megadeberta.ops"},
    "megadeberta.data": LAYERS | {"megadeberta.batch"},
    "megadeberta.observability": LAYERS | {"megadeberta.checkpoint"},
    "megadeberta.model": LAYERS | {"megadeberta.batch", "megadeberta.ops"},
    "megadeberta.parallel": LAYERS | {"megadeberta.batch", "megadeberta.ops", "megadeberta.model"},
    "megadeberta.checkpoint": CONFIG,
    "megadeberta.rank": CONFIG,
    "megadeberta.doctor": CONFIG | {"megadeberta.rank", BACKENDS, "megadeberta.ops"},
    "megadeberta.preflight": LAYERS | {f"megadeberta.{room}" for room in ("data", "rank", "checkpoint", "weights")},
    "megadeberta.plan": LAYERS | {f"megadeberta.{room}" for room in ("preflight", "rank", "observability")},
    "megadeberta.engine": LAYERS | {"megadeberta.batch", "megadeberta.checkpoint"},
    "megadeberta.weights": LAYERS | {"megadeberta.model", "megadeberta.data", "megadeberta.checkpoint"},
    "megadeberta.convert": LAYERS
    | {f"megadeberta.{room}" for room in ("weights", "ops", "model", "data", "observability", "checkpoint")},
    "megadeberta.hf": {"megadeberta.errors", BACKENDS, "megadeberta.ops"},
    "megadeberta.evaluate": LAYERS
    | {f"megadeberta.{room}" for room in ("batch", "model", "data", "checkpoint", "weights", "convert")},
    "megadeberta.finetune": LAYERS
    | {f"megadeberta.{room}" for room in ("convert", "data", "weights", "checkpoint", "hf", "engine")},
    "megadeberta.stages": LAYERS
    | {f"megadeberta.{room}" for room in ("ops", "checkpoint", "engine", "observability", "weights", "convert")},
    "megadeberta.train_cli": LAYERS | {f"megadeberta.{room}" for room in ("preflight", "plan", "train", "rank")},
    "megadeberta.assembly": None,
    "megadeberta.train": None,
    "megadeberta.cli": None,
    "megadeberta.__main__": {"megadeberta.cli", "megadeberta.errors"},
    "megadeberta.launcher": CONFIG
    | {f"megadeberta.{room}" for room in ("preflight", "rank", "doctor", "checkpoint", "train_cli")},
    "megadeberta.data_prep": CONFIG | {"megadeberta.data", "megadeberta.checkpoint"},
}
TORCH_FREE = (
    "megadeberta.config.load",
    "megadeberta.preflight.validate",
    "megadeberta.errors",
    "megadeberta.layers.cuts",
    "megadeberta.layers.objectives",
    "megadeberta.ops.attention.backends",
    "megadeberta.plan.cli",
    "megadeberta.cli",
    "megadeberta.finetune.cli",
    "megadeberta.finetune.start_place",
    "megadeberta.convert.find",
    "megadeberta.convert.mask_text",
    "megadeberta.convert.published_folder",
    "megadeberta.evaluate.inputs",
    "megadeberta.preflight.run",
    "megadeberta.stages.averaged",
    "megadeberta.stages.cooldown",
    "megadeberta.stages.extend",
    "megadeberta.finetune.tasks.table",
)
HEAVY = ("torch", "deepspeed", "transformers", "matplotlib")


def _shipped_files() -> list[Path]:
    return sorted(path for folder in SHIPPED for path in (ROOT / folder).rglob("*.py"))


def _module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    if parts[0] != "megadeberta":  # the wheel has these folders inside the package
        parts = ("megadeberta", *parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def _room(module: str) -> str:
    parts = module.split(".")
    candidates = (".".join(parts[:length]) for length in range(len(parts), 0, -1))
    return next(room for room in candidates if room in DIRECTIONS)


def _imports(path: Path) -> Iterator[tuple[int, str]]:
    """Line and dotted name of every import, those inside functions too."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: relative import"
            yield node.lineno, node.module or ""
            if node.module == "megadeberta":  # `from megadeberta import x` may name a module
                names = (f"{node.module}.{alias.name}" for alias in node.names)
                yield from ((node.lineno, name) for name in names if (ROOT / name.replace(".", "/")).exists())


def test_imports_follow_the_direction_of_the_rooms() -> None:
    wrong = []
    for path in _shipped_files():
        room = _room(_module_name(path))
        allowed = DIRECTIONS[room]
        for line, name in _imports(path):
            if allowed is None or name.split(".")[0] != "megadeberta":
                continue
            if _room(name) != room and _room(name) not in allowed:
                wrong.append(f"{path.relative_to(ROOT)}:{line}: {room} must not import {name}")
    assert not wrong, "\n".join(wrong)


def test_every_file_belongs_to_a_room_of_the_architecture_document() -> None:
    document = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    for folder in ("megadeberta/" + path.name for path in (ROOT / "megadeberta").iterdir() if path.is_dir()):
        if folder.endswith("__pycache__") or (ROOT / folder).is_symlink():
            continue
        assert folder.replace("/", ".") in DIRECTIONS, f"{folder} has no direction in this test"
        assert f"`{folder}`" in document, f"{folder} is missing in the rooms of docs/architecture.md"


def test_only_the_engine_imports_deepspeed() -> None:
    users = {
        _room(_module_name(path))
        for path in _shipped_files()
        for _, name in _imports(path)
        if name.split(".")[0] == "deepspeed"
    }
    assert users == {"megadeberta.engine"}


def test_only_config_and_the_build_of_the_engine_look_into_the_deepspeed_block() -> None:
    """Others ask ``config.engine``: the block's keys and DeepSpeed's defaults are known in one place."""
    readers = {
        str(path.relative_to(ROOT))
        for path in [*_shipped_files(), *(ROOT / "benchmarks").rglob("*.py"), *(ROOT / "tests").rglob("*.py")]
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if _looks_into_the_block(node)
    }
    allowed = ("megadeberta/config/", "megadeberta/engine/build.py", "tests/unit/config/")
    assert {name for name in readers if not name.startswith(allowed)} == set()


def _looks_into_the_block(node: ast.AST) -> bool:
    """``x.deepspeed[...]``, ``x.deepspeed.get``, ``x.deepspeed | ...``, and a name for it (``block = x.deepspeed``)."""
    if isinstance(node, ast.Subscript | ast.Attribute | ast.Assign):
        return _is_block(node.value)
    if isinstance(node, ast.BinOp):
        return _is_block(node.left) or _is_block(node.right)
    return isinstance(node, ast.Compare) and any(_is_block(value) for value in node.comparators)


def _is_block(node: ast.AST) -> bool:
    return isinstance(node, ast.Attribute) and node.attr == "deepspeed"


def test_torch_is_imported_only_where_tensors_are() -> None:
    free = (
        "megadeberta.config",
        "megadeberta.errors",
        "megadeberta.preflight.run",
        "megadeberta.plan",
        "megadeberta.layers",
        "megadeberta.rank",
        "megadeberta.launcher",
        "megadeberta.data_prep",
        BACKENDS,
    )
    with_torch = [
        f"{path.relative_to(ROOT)}:{line}: {name}"
        for path in _shipped_files()
        for line, name in _imports(path)
        if name.split(".")[0] in ("torch", "deepspeed", "transformers") and _room(_module_name(path)) in free
    ]
    assert with_torch == []


@pytest.mark.parametrize("module", TORCH_FREE)
def test_importing_the_module_loads_nothing_heavy(module: str) -> None:
    code = f"import {module}, sys; print([name for name in {HEAVY!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("folder", ["launcher", "data_prep"])
def test_importing_every_module_of_the_folder_loads_no_torch(folder: str) -> None:
    modules = [_module_name(path) for path in sorted((ROOT / folder).rglob("*.py"))]
    code = f"import {', '.join(modules)}, sys; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_no_file_is_longer_than_400_lines() -> None:
    files = [*_shipped_files(), *(ROOT / "tests").rglob("*.py"), *(ROOT / "benchmarks").rglob("*.py")]
    lengths = {str(path.relative_to(ROOT)): len(path.read_text(encoding="utf-8").splitlines()) for path in files}
    assert {name: length for name, length in lengths.items() if length > LONGEST_FILE} == {}


def test_at_most_15_functions_are_longer_than_40_lines() -> None:
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef)
    lengths = {
        f"{path.relative_to(ROOT)}:{node.name}": node.end_lineno - node.lineno + 1  # type: ignore[operator]
        for path in _shipped_files()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, kinds)
    }
    long = {name: length for name, length in lengths.items() if length > LONG_FUNCTION}
    assert len(long) <= MOST_LONG_FUNCTIONS, sorted(long.items(), key=lambda item: item[1])


def test_nothing_shipped_prints() -> None:
    calls = [
        f"{path.relative_to(ROOT)}:{node.lineno}"
        for path in _shipped_files()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print"
    ]
    assert calls == []


def test_no_module_is_a_grab_bag() -> None:
    grab_bags = {"utils", "util", "helpers", "misc", "common"}
    assert [str(path) for path in _shipped_files() if path.stem in grab_bags] == []


def test_a_worker_of_prep_loads_neither_recipes_nor_the_command_line() -> None:
    """Each set of workers loads this once: it is most of what a second worker costs."""
    check = (
        "import sys; import megadeberta.data_prep.work; print(sorted({'pydantic', 'typer', 'rich'} & set(sys.modules)))"
    )
    found = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=True)
    assert found.stdout == "[]\n"
