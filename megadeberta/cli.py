"""The console script: a table of commands, and one line on standard error for every mistake a user can make.

Commands come from torch-free modules that import torch, transformers and the like in their bodies, so that ``--help``
is quick and ``megadeberta launch`` runs on a login node.
"""

import errno
import logging
import os
import sys
from typing import Annotated

import typer

import megadeberta.checkpoint.cli
import megadeberta.config.cli
import megadeberta.convert.cli
from megadeberta import __version__
from megadeberta.data_prep.cli import prep, verify
from megadeberta.data_prep.fetch import fetch
from megadeberta.errors import EXIT_STORAGE, EXIT_USAGE, MegadebertaError
from megadeberta.evaluate.cli import evaluate
from megadeberta.launcher.cli import launch
from megadeberta.model.kernel_choice.cli import kernels
from megadeberta.observability.cli import report
from megadeberta.observability.logs import set_up_logging
from megadeberta.plan.cli import plan
from megadeberta.rank.ending import ending
from megadeberta.train_cli import train

EXIT_INTERRUPTED = 130
_STORAGE_ERRORS = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO}

DATA, TRAINING, AFTERWARDS = "1. Text to shards", "2. Training", "3. Checkpoints and export"

app = typer.Typer(
    name="megadeberta",
    help="""Pre-train DeBERTa v1, v2 and v3 from scratch with DeepSpeed, and hand the result to transformers.

    A first run, in order:

    1. `megadeberta fetch wikitext2`
    2. `megadeberta prep --help`
    3. `megadeberta launch quickstart --ranks 2`
    4. `megadeberta convert export runs/quickstart exported`
    """,
    epilog="Exit codes: 0 done; 2 something to change; 75 saved on a signal; 77 not finite; 79 storage; 80 a rank was "
    "lost. After 75 and 80, run the same command again to resume.",
    no_args_is_help=True,
    rich_markup_mode="markdown",
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command(rich_help_panel=DATA)(fetch)
app.command(rich_help_panel=DATA)(prep)
app.command(rich_help_panel=DATA)(verify)
app.command(rich_help_panel=TRAINING)(megadeberta.config.cli.recipes)
app.command(rich_help_panel=TRAINING)(launch)
app.command(rich_help_panel=TRAINING)(train)
app.command(rich_help_panel=TRAINING)(report)
app.command(rich_help_panel=TRAINING)(plan)
app.command(rich_help_panel=TRAINING)(kernels)
app.add_typer(megadeberta.checkpoint.cli.app, name="checkpoint", rich_help_panel=AFTERWARDS)
app.add_typer(megadeberta.convert.cli.app, name="convert", rich_help_panel=AFTERWARDS)
app.command(rich_help_panel=AFTERWARDS)(evaluate)
app.command("fill-mask", rich_help_panel=AFTERWARDS)(megadeberta.convert.cli.fill_mask)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"megadeberta {__version__}")
        raise typer.Exit


@app.callback()
def _common_options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Show the version.")
    ] = False,
    local_rank: Annotated[
        int | None,
        typer.Option("--local_rank", "--local-rank", hidden=True, help="from the deepspeed launcher"),
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
    return code if isinstance(code, int) else 0


def _report(message: str, code: int) -> int:
    # A name from a damaged file may hold what the terminal cannot show, which must not become an error of its own.
    line = " ".join(message.split()).encode(errors="backslashreplace").decode()
    typer.echo(f"error: {line}", err=True)
    return code


def _with_help_hint(error: typer.TyperException) -> str:
    context = getattr(error, "ctx", None)
    command = context.command_path if context is not None else "megadeberta"
    return f"{error.format_message().rstrip('.')} (`{command} --help` explains)"


def _report_os_error(error: OSError) -> int:
    """The file system said no and nobody explained: still one line, with the file's name."""
    if error.errno is None or (error.filename is None and error.errno not in _STORAGE_ERRORS):
        raise error
    name = f"{error.filename}: " if error.filename is not None else ""
    code = EXIT_STORAGE if error.errno in _STORAGE_ERRORS else EXIT_USAGE
    return _report(f"{name}{error.strerror}", code)
