"""README and docs name commands, options, recipes, settings, targets and files that exist."""

import importlib.util
import itertools
import json
import re
import shlex
from pathlib import Path

import pytest
import typer

from megadeberta.cli import command_line
from megadeberta.config.load import load_run_config
from megadeberta.config.recipes import recipe_names
from megadeberta.errors import ConfigError
from tests.document_commands import PAGES, ROOT, Command, commands, simple

COMMANDS = [command for page in PAGES for command in commands(page)]
OURS = [command for command in COMMANDS if command.arguments() is not None]
OTHER_PROGRAMS = set("apptainer apt-get deepspeed docker for hf mlflow mpiexec pip python sbatch srun ssh".split()) | {
    *"ssh-copy-id ssh-keygen tensorboard torchrun wandb . cd pre-commit megadeberta make".split()
}
"""What a reader may be told to start; anything else is a slip of the pen."""
OF_THE_READER = re.compile(r"[A-Z]+|([\w-]+/)*[\w-]+\.(json|yaml)")
"""Recipes that no package holds: a word for one, or a file."""
ANY_RECIPE = "deberta-v3-base"
STAND_FOR = {"N": "2", "I/N": "1/2", "...": ""}
"""Words that stand for values, and one such value."""
AT_ONCE = {"--install-completion", "--help", "--version"}
"""Options that act while the line is parsed, one of them on the reader's own shell."""


def _options(arguments: tuple[str, ...], *names: str) -> list[str]:
    """The values that an option has got."""
    return [value for name, value in itertools.pairwise(arguments) if name in names]


def _without_plugins(arguments: tuple[str, ...]) -> list[str]:
    """Modules of the reader, which are imported while the line is parsed, are not here."""
    plugins = {place for place, word in enumerate(arguments) if word == "--plugin"}
    return [word for place, word in enumerate(arguments) if place not in plugins | {place + 1 for place in plugins}]


def _parse(command: Command) -> None:
    """Let the command line read the words, down to the last subcommand; nothing is run."""
    words = [STAND_FOR.get(word, word) for word in _without_plugins(command.arguments() or ()) if word not in AT_ONCE]
    part = typer.main.get_command(command_line())
    context = part.make_context("megadeberta", words) if words else None
    while context is not None and hasattr(context.command, "resolve_command"):
        rest = [*context._protected_args, *context.args]
        if not rest:
            return
        name, part, rest = context.command.resolve_command(context, rest)
        context = part.make_context(name, rest, parent=context)


@pytest.mark.parametrize("command", OURS, ids=str)
def test_the_command_line_takes_every_command(command: Command) -> None:
    try:
        _parse(command)
    except typer.TyperException as error:
        is_short = not command.in_block and re.search("^$|Missing|requires an argument", str(error))
        assert is_short, f"{command}: {error}"


def _recipes_of(page: str, folder: Path) -> dict[str, Path]:
    """The recipes that a page writes out, by name, as files."""
    text = next(path for path in PAGES if path.name == page).read_text(encoding="utf-8")
    found = {}
    for block in re.findall(r"^```json\n(.*?)^```$", text, re.MULTILINE | re.DOTALL):
        values = json.loads(block)
        if "extends" in values and "plugins" not in values:
            found[values["name"]] = folder / f"{values['name']}.json"
            found[values["name"]].write_text(block, encoding="utf-8")
    return found


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_recipes_that_a_page_writes_out_are_valid(page: Path, tmp_path: Path) -> None:
    for path in _recipes_of(page.name, tmp_path).values():
        load_run_config(path)


@pytest.mark.parametrize(
    "command", [command for command in OURS if set(command.arguments()[:1]) & {"train", "launch", "plan"}], ids=str
)
def test_recipes_and_settings_of_every_command_exist(command: Command, tmp_path: Path) -> None:
    recipe, *_ = [word for word in command.arguments()[1:] if not word.startswith("-")] or [ANY_RECIPE]
    assert recipe in recipe_names() or OF_THE_READER.fullmatch(recipe), f"{command}: no recipe {recipe}"
    candidates = [recipe] if recipe in recipe_names() else [ANY_RECIPE, *_recipes_of(command.page, tmp_path).values()]
    refused = []
    for candidate in candidates:
        try:
            load_run_config(Path(candidate), _options(command.arguments(), "--set"), vocabulary_size=lambda path: 1000)
            return
        except ConfigError as error:
            refused.append(str(error))
    pytest.fail(f"{command}: {refused}")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_a_page_starts_only_programs_that_are_expected(page: Path) -> None:
    firsts = {command.words[0] for command in COMMANDS if command.page == page.name}
    assert sorted(firsts - OTHER_PROGRAMS - {".venv/bin/python"}) == []


def test_every_target_of_make_exists() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    asked = [command for command in COMMANDS if command.words[0] == "make"]
    assert len(asked) > 10
    assert [str(command) for command in asked if command.words[1] not in targets] == []


def _script(command: Command) -> Path | None:
    """The Python file that a command starts, one of ours; None for others."""
    words = command.after("python") or command.after(".venv/bin/python") or ()
    if words[:1] == ("-m",) and words[1].startswith("megadeberta."):
        spec = importlib.util.find_spec(words[1])
        return Path(spec.origin) if spec and spec.origin else ROOT / words[1]
    return ROOT / words[0] if words and words[0].endswith(".py") else None


@pytest.mark.parametrize("command", [command for command in COMMANDS if _script(command)], ids=str)
def test_scripts_exist_and_know_their_options(command: Command) -> None:
    script = _script(command)
    assert script.is_file()
    source = script.read_text(encoding="utf-8")
    options = [word for word in command.words if word.startswith("--")]
    assert [option for option in options if option != "--help" and f'"{option}"' not in source] == []


def _known_options() -> set[str]:
    """Of all our commands."""
    names, left = set(), [typer.main.get_command(command_line())]
    while left:
        part = left.pop()
        left += getattr(part, "commands", {}).values()
        names |= {name for each in part.params for name in (*each.opts, *each.secondary_opts)}
    return names | {"--help", "--install-completion", "--show-completion"}


OF_OTHERS = set("--launcher --hostfile --module --logdir --max-restarts --no-deps --local-dir".split())
OF_OTHERS |= set("--cpus-per-task --exclusive --mem".split())
"""Options of other programs that texts name; a new one belongs here."""


OUR_SCRIPTS = [
    path for folder in ("benchmarks", "tools", "docs/examples", "tests/e2e") for path in (ROOT / folder).rglob("*.py")
]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_option_that_a_text_names_is_known(page: Path) -> None:
    scripts = "".join(path.read_text(encoding="utf-8") for path in OUR_SCRIPTS)
    known = _known_options() | OF_OTHERS | set(re.findall(r'["`](--[a-z-]+)', scripts))
    known |= {f"--{name.replace('_', '-')}" for name in re.findall(r"^ +(\w+): Annotated\[", scripts, re.MULTILINE)}
    spans = re.findall(r"`([^`\n]*--[a-z][^`\n]*)`", page.read_text(encoding="utf-8"))
    ours = [span for span in spans if not re.match(r"(pip|make|hf|pytest|sbatch|mlflow)\b", span)]
    named = {re.split(r"[=\s]", word)[0] for span in ours for word in re.split(r"[\s|/(),]+", span) if "--" in word[:2]}
    assert sorted(named - known) == []


def test_a_slip_is_found() -> None:
    """What the tests above would have to refuse."""
    line = "OMP_NUM_THREADS=1 megadeberta train small-mlm --stes 3 > log  # a comment"
    (words,) = simple(line)
    assert words == tuple(shlex.split("megadeberta train small-mlm --stes 3"))
    with pytest.raises(typer.TyperException, match="--stes"):
        _parse(Command("page", 1, words, in_block=True))
