"""The console script: a table of commands, and one line on standard error for every mistake a user can make.

A command's module is imported when it is asked for, and all of them only for the list of commands. They are torch-free
and import torch, transformers and the like in the bodies of their functions, so that ``--help`` is quick and
``megadeberta launch`` runs on a login node.
"""

import errno
import importlib
import itertools
import logging
import os
import re
import shutil
import sys
from collections.abc import Iterable
from typing import Annotated, Any

import typer

from megadeberta import __version__
from megadeberta.config.shell import begins_for_shell
from megadeberta.config.terminal import wrap_items
from megadeberta.errors import EXIT_INTERRUPTED, EXIT_STORAGE, EXIT_USAGE, ConfigError, MegadebertaError
from megadeberta.observability.logs import set_up_logging
from megadeberta.rank.ending import ending

_STORAGE_ERRORS = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO}

DATA, TRAINING, AFTERWARDS = "1. Text to shards", "2. Training", "3. Checkpoints and export"

COMMANDS = {
    "fetch": (DATA, "megadeberta.data_prep.fetch", "fetch"),
    "prep": (DATA, "megadeberta.data_prep.cli", "prep"),
    "verify": (DATA, "megadeberta.data_prep.cli", "verify"),
    "data": (DATA, "megadeberta.data_prep.data_cli", "app"),
    "tokenizer": (DATA, "megadeberta.data_prep.tokenizer_cli", "app"),
    "doctor": (TRAINING, "megadeberta.launcher.doctor_cli", "doctor"),
    "init": (TRAINING, "megadeberta.plan.init_cli", "init"),
    "recipes": (TRAINING, "megadeberta.config.cli", "recipes"),
    "launch": (TRAINING, "megadeberta.launcher.cli", "launch"),
    "train": (TRAINING, "megadeberta.train_cli", "train"),
    "cooldown": (TRAINING, "megadeberta.stages.cli", "cooldown"),
    "extend": (TRAINING, "megadeberta.stages.cli", "extend"),
    "report": (TRAINING, "megadeberta.observability.cli", "report"),
    "plan": (TRAINING, "megadeberta.plan.cli", "plan"),
    "kernels": (TRAINING, "megadeberta.model.kernel_choice.cli", "kernels"),
    "checkpoint": (AFTERWARDS, "megadeberta.stages.checkpoint_cli", "app"),
    "convert": (AFTERWARDS, "megadeberta.convert.cli", "app"),
    "finetune": (AFTERWARDS, "megadeberta.finetune.cli", "finetune"),
    "evaluate": (AFTERWARDS, "megadeberta.evaluate.cli", "evaluate"),
    "fill-mask": (AFTERWARDS, "megadeberta.convert.cli", "fill_mask"),
}
"""Name -> panel of the help, module, and the function in it, or the Typer object of a group of commands."""
_OF_RECIPES = {"train", "launch", "plan"}
"""Commands that take --set."""


def command_line(names: Iterable[str] = tuple(COMMANDS)) -> typer.Typer:
    """The command line with the commands ``names``; only their modules are imported."""
    commands = typer.Typer(
        name="megadeberta",
        help="""Pre-train DeBERTa v1, v2 and v3 from scratch with DeepSpeed, and hand the result to transformers.

        A first run, in order:

        1. `megadeberta fetch wikitext2`
        2. `megadeberta prep --help`
        3. `megadeberta launch quickstart --ranks 2`
        4. `megadeberta convert export runs/quickstart exported`
        """,
        epilog="Exit codes: 0 done; 2 something to change; 75 saved on a signal; 76 a rank hung; 77 not finite; 79 "
        "storage; 80 a rank was lost; 81 replicas differ. After 75, 76 and 80, run the same command again to resume.",
        no_args_is_help=True,
        rich_markup_mode="markdown",
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    commands.callback()(_common_options)
    for name in names:
        panel, module, attribute = COMMANDS[name]
        command = getattr(importlib.import_module(module), attribute)
        if isinstance(command, typer.Typer):
            commands.add_typer(command, name=name, rich_help_panel=panel)
        else:
            commands.command(name, rich_help_panel=panel)(command)
    return commands


def __getattr__(name: str) -> Any:
    if name != "app":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return command_line()


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"megadeberta {__version__}")
        raise typer.Exit


def _common_options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Show the version")
    ] = False,
    local_rank: Annotated[
        int | None,
        typer.Option("--local_rank", "--local-rank", hidden=True, help="From the deepspeed launcher"),
    ] = None,
) -> None:
    if local_rank is not None:
        os.environ.setdefault("LOCAL_RANK", str(local_rank))


def main() -> None:
    """Run the command line and exit: 0, a documented code, or a traceback for a bug."""
    set_up_logging(0, level=logging.WARNING)
    with ending():
        sys.exit(_run())


def _run() -> int:
    try:
        _check_no_word_is_empty()
        _check_the_shell_did_its_part()
        # What a test or a plugin put in its place, or as much of the command line as is asked for.
        asked = [name for name in _typed_words()[1:2] if name in COMMANDS]
        app = globals().get("app") or command_line(asked or COMMANDS)
        code = app(prog_name="megadeberta", standalone_mode=False)
        sys.stdout.flush()
    except BrokenPipeError:
        # `megadeberta ... | head`: nobody reads on. Python flushes standard output once more at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 1
    except (KeyboardInterrupt, typer.Abort):
        code = EXIT_INTERRUPTED
    except MegadebertaError as error:
        code = _report(str(error), error.exit_code)
    except typer.TyperException as error:
        # Without a message, the help was asked for by giving no argument, and has been printed.
        code = _report(_with_help_hint(error), error.exit_code) if error.format_message() else EXIT_USAGE
    except OSError as error:
        code = _report_os_error(error)
    except RuntimeError as error:
        if not str(error).startswith("Symlink loop"):  # of Path.resolve, until Python 3.13
            raise
        code = _report(f"{error}: links that lead back to themselves; remove them", EXIT_USAGE)
    return code if isinstance(code, int) else 0


def _typed_words() -> list[str]:
    """Those of the command, or of the line that a shell wants completed: it must be quick, too."""
    return os.environ["COMP_WORDS"].split() if "_MEGADEBERTA_COMPLETE" in os.environ else sys.argv


def _check_no_word_is_empty() -> None:
    """A variable of the shell without a value would be the working folder wherever a path is asked for."""
    for before, word in itertools.pairwise(sys.argv):
        option = word[:-1] if re.fullmatch(r"--[\w-]+=", word) else before
        if not word or option != before:
            place = f"{option} has an empty value" if option.startswith("-") else f"the word behind {option!r} is empty"
            raise ConfigError(f"{place}, such as that of a shell variable which is not set; . is the working folder")


def _check_the_shell_did_its_part() -> None:
    """What it leaves in quotes, or behind an =, would be a folder of that name."""
    for word in sys.argv[1:]:
        value = re.sub(r"^[\w.-]+=", "", word)
        if begins_for_shell(value):
            raise ConfigError(
                f"{word}: the shell leaves {value.partition('/')[0]} as it is within quotes and behind an =; write the "
                "whole path"
            )


def _report(message: str, code: int) -> int:
    # A name from a damaged file may hold what the terminal cannot show, which must not become an error of its own.
    line = " ".join(message.split()).encode(errors="backslashreplace").decode()
    width = shutil.get_terminal_size().columns if sys.stderr.isatty() else None
    typer.echo(wrap_items(f"error: {line}".split(), width, indent="  "), err=True)
    return code


def _with_help_hint(error: typer.TyperException) -> str:
    context = getattr(error, "ctx", None)
    command = context.command_path if context is not None else _typed_command()
    message = error.format_message().rstrip(".")
    if unknown := re.match(r"No such command '([\w-]+)'", message):
        groups = [f"`megadeberta {group} {unknown[1]}`" for group in _groups_with(unknown[1])]
        message = f"{unknown[0]}; did you mean {' or '.join(groups)}?" if groups else message
    elif (option := re.match(r"No such option: (--[\w-]+)", message)) and set(command.split()) & _OF_RECIPES:
        from megadeberta.config.load import places_of_setting
        from megadeberta.config.other_names import option_of_ours

        hint = option_of_ours(option[1], places_of_setting)
        message = f"{option[0]}; {hint}" if hint else message
    elif "unexpected extra argument" in message:
        message += "; put quotes around one that holds spaces"
    return f"{message} (`{command} --help` explains)"


def _typed_command() -> str:
    """As far as a mistake in an option says nothing of the command that it was given to."""
    words = list(itertools.takewhile(lambda word: not word.startswith("-"), sys.argv[1:3]))
    if not words or words[0] not in COMMANDS:
        return "megadeberta"
    return " ".join(["megadeberta", *words[: 2 if COMMANDS[words[0]][2] == "app" else 1]])


def _groups_with(name: str) -> list[str]:
    """The groups of commands that have one of this name: `export` is one of `convert`."""
    groups = [group for group, (_, _, attribute) in COMMANDS.items() if attribute == "app"]
    found = typer.main.get_command(command_line(groups))
    return [group for group, commands in getattr(found, "commands", {}).items() if name in commands.commands]


def _report_os_error(error: OSError) -> int:
    """The file system said no and nobody explained: still one line, with the file's name."""
    if error.errno is None or (error.filename is None and error.errno not in _STORAGE_ERRORS):
        raise error
    name = f"{error.filename}: " if error.filename is not None else ""
    code = EXIT_STORAGE if error.errno in _STORAGE_ERRORS else EXIT_USAGE
    return _report(f"{name}{error.strerror}", code)
