"""``megadeberta launch``: one recipe on several processes. Torch-free: it also runs on a login node."""

import os
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from megadeberta import train_cli
from megadeberta.config.cli import RecipeArgument
from megadeberta.config.recipes import words_for_nodes
from megadeberta.config.run import RunConfig
from megadeberta.errors import ConfigError, ParallelError
from megadeberta.launcher.hosts.choice import HostChoice
from megadeberta.launcher.hosts.hostfile import build_command, read_hostfile
from megadeberta.launcher.hosts.start import HostsStart
from megadeberta.launcher.hosts.supervise import HostsRun, find_unfit_hosts
from megadeberta.launcher.local import launch_local
from megadeberta.launcher.network_log import NETWORK_LOG
from megadeberta.launcher.restart import MOST_RESTARTS, Restarts, Start, newest_checkpoint
from megadeberta.launcher.signals import SignalInbox
from megadeberta.launcher.slurm import SlurmJob, render_sbatch
from megadeberta.launcher.verdict import Verdict
from megadeberta.launcher.watch import Supervised
from megadeberta.preflight.run import load_recipe, prepare_run
from megadeberta.preflight.validate import validate_run
from megadeberta.rank.devices import count_local_devices
from megadeberta.rank.environment import detect_ranks
from megadeberta.topology import Topology

Overrides = Annotated[
    list[str] | None, typer.Option("--set", metavar="SECTION.KEY=VALUE", help="Override a value; may be repeated")
]


def launch(
    recipe: RecipeArgument,
    extra: Annotated[
        list[str] | None, typer.Argument(metavar="-- EXTRA", help="Passed on to `megadeberta train`")
    ] = None,
    *,
    overrides: Overrides = None,
    ranks: Annotated[
        int | None, typer.Option(min=1, help="Processes on this machine (default: one per GPU, or 1)")
    ] = None,
    master_port: Annotated[
        int | None, typer.Option(min=1, max=65535, help="Rendezvous port (default: a free one; 29500 with a hostfile)")
    ] = None,
    hostfile: Annotated[
        Path | None, typer.Option(help="Several machines through the deepspeed launcher; lines 'HOST slots=N'")
    ] = None,
    master_addr: Annotated[
        str | None,
        typer.Option(help="With a hostfile: address of its first host that the others use (default: its first one)"),
    ] = None,
    spare_hosts: Annotated[
        int, typer.Option(min=0, help="With a hostfile: so many of its last hosts wait until another one is lost")
    ] = 0,
    fewest_hosts: Annotated[
        int | None,
        typer.Option(
            min=1, help="With a hostfile: go on with as few hosts when others stay lost (default: wait for all)"
        ),
    ] = None,
    restarts: Annotated[
        int,
        typer.Option(
            min=0, help="Starts again by itself after a lost or hung rank, at most so often without a new checkpoint"
        ),
    ] = MOST_RESTARTS,
    slurm: Annotated[
        int | None, typer.Option(metavar="NODES", min=1, help="Print an sbatch script for this many nodes and exit")
    ] = None,
) -> None:
    """Train a recipe on several processes: the local ones, those of a hostfile, or a Slurm job's.

    Ctrl-C, SIGTERM and SIGUSR1 reach every rank at once; all save a checkpoint and the exit code is 75. The same
    command resumes. A lost or hung rank or machine ends the others, and the run starts again by itself from the newest
    intact checkpoint (docs/reliability.md).

    Under torchrun, mpiexec or srun use `megadeberta train`, which finds its rank by itself.

    Examples:

        megadeberta launch deberta-v3-base-mlm --ranks 8

        megadeberta launch quickstart --ranks 2 --set optimizer.lr=5e-4

        megadeberta launch deberta-v3-base-mlm --hostfile hosts.txt

        megadeberta launch deberta-v3-base-mlm --hostfile hosts.txt --spare-hosts 1

        megadeberta launch deberta-v3-base-mlm --slurm 4 --ranks 8 > job.sh && sbatch job.sh
    """
    _refuse_inside_a_launcher()
    if hostfile is not None and (ranks is not None or slurm is not None):
        raise ConfigError("--hostfile gives the ranks of every machine; leave --ranks and --slurm out")
    if hostfile is None and (spare_hosts or fewest_hosts is not None):
        raise ConfigError(
            "--spare-hosts and --fewest-hosts choose among the machines of a --hostfile, and there is none"
        )
    if hostfile is None and master_addr is not None:
        raise ConfigError(f"--master-addr {master_addr} is an address of a --hostfile's first host; leave it out here")
    _check_extra(recipe, extra or ())
    words = [str(recipe), *(word for override in overrides or () for word in ("--set", override)), *(extra or ())]
    local_ranks = ranks or count_local_devices(os.environ)
    if slurm is not None and not local_ranks:
        raise ConfigError(f"--slurm {slurm}: no GPU is here to be counted; say how many a node has: --ranks 8")
    local_ranks = local_ranks or 1
    config = load_recipe(recipe, overrides or ())
    if slurm is not None:
        validate_run(config, world_size=slurm * local_ranks, source=str(recipe))
        job = SlurmJob(config.name, config.training.output_dir, nodes=slurm, tasks_per_node=local_ranks)
        typer.echo(render_sbatch(job, ["megadeberta", "train", words_for_nodes(recipe), *words[1:]]), nl=False)
        return
    start: Start
    if hostfile is not None:
        able = partial(_can_run, config, str(recipe))
        choice = HostChoice(read_hostfile(hostfile), spare=spare_hosts, fewest=fewest_hosts, fits=able)
        start = _hosts_start(config, choice, recipe, overrides or (), words, master_port=master_port)
        start.master_addr = master_addr
        start.check()
    else:
        prepared = prepare_run(recipe, overrides or (), world_size=local_ranks)
        train_cli.check_machine(prepared)
        train = [sys.executable, "-m", "megadeberta", "train", *words]
        start = _start_here(
            train, ranks=local_ranks, master_port=master_port, run=_supervised(config, prepared.topology)
        )
    progress = partial(newest_checkpoint, config.training.output_dir)
    verdict = Restarts(restarts, progress=progress, say=partial(typer.echo, err=True)).run(start)
    for line in verdict.lines:
        typer.echo(line, err=True)
    raise typer.Exit(verdict.exit_code)


def _check_extra(recipe: Path, extra: Sequence[str]) -> None:
    """Refuse what `megadeberta train` would, once and before every rank does."""
    train = typer.Typer(add_completion=False)
    train.command()(train_cli.train)
    typer.main.get_command(train).make_context("megadeberta train", [str(recipe), *extra])


def _hosts_start(
    config: RunConfig,
    choice: HostChoice,
    recipe: Path,
    overrides: Sequence[str],
    words: list[str],
    *,
    master_port: int | None,
) -> HostsStart:
    """
    Raises:
        ConfigError: the recipe does not fit the ranks of a whole start.
    """
    validate_run(config, world_size=choice.world_size, source=str(recipe))

    def watched(hosts: Sequence[str]) -> HostsRun:
        topology = validate_run(config, world_size=choice.ranks_of(hosts), source=str(recipe))[1]
        return HostsRun(_supervised(config, topology), [host for host in hosts for _ in range(choice.slots[host])])

    asked = [str(recipe), *overrides]
    return HostsStart(
        choice,
        command=lambda hostfile, **options: build_command(hostfile, words, environ=os.environ, **options),
        find_unfit=partial(find_unfit_hosts, list(choice.slots), asked, world_size=choice.world_size),
        environ=os.environ,
        say=partial(typer.echo, err=True),
        master_port=master_port,
        run=watched,
    )


def _can_run(config: RunConfig, source: str, world_size: int) -> bool:
    try:
        validate_run(config, world_size=world_size, source=source)
    except ConfigError:
        return False
    return True


def _supervised(config: RunConfig, topology: Topology) -> Supervised:
    log = config.training.output_dir / NETWORK_LOG
    return Supervised(config.supervision, lambda rank: topology.coordinates(rank).stage, log)


def _start_here(command: list[str], *, ranks: int, master_port: int | None, run: Supervised) -> Start:
    def start(number: int, inbox: SignalInbox) -> Verdict:
        return launch_local(command, ranks=ranks, environ=os.environ, master_port=master_port, inbox=inbox, run=run)

    return start


def _refuse_inside_a_launcher() -> None:
    """Eight tasks of srun, each starting eight ranks, would be eight runs in one output folder."""
    ranks = detect_ranks(os.environ)
    if ranks.world_size > 1:
        raise ParallelError(
            f"{ranks.started_by} has started {ranks.world_size} processes already; give it `megadeberta train`: "
            "`megadeberta launch` starts the ranks itself"
        )
