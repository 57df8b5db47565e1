"""``megadeberta doctor``: this machine, or those of a hostfile. Torch runs in processes of its own."""

import json
import os
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from megadeberta.errors import EXIT_USAGE


def doctor(
    hostfile: Annotated[
        Path | None, typer.Option(help="examine the hosts of this file over ssh, and compare them", show_default=False)
    ] = None,
    folder: Annotated[Path, typer.Option(help="where runs are to lie: its disk is tried")] = Path("."),
    as_json: Annotated[bool, typer.Option("--json", help="everything as one JSON object")] = False,
) -> None:
    """Show what this machine has for a run, what is missing and how to get it; exit code 2 if there is a problem.

    Python and packages, compiler, launchers, memory, /dev/shm, disk, network, GPUs, and the attention kernels and an
    all-reduce tried for real. It takes about half a minute and changes nothing. With --hostfile every machine of the
    file is asked at the same time, and what differs between them is a problem too.

    Examples:

        megadeberta doctor

        megadeberta doctor --hostfile hosts.txt
    """
    from megadeberta.doctor.examine import examine
    from megadeberta.doctor.findings import differences
    from megadeberta.doctor.show import show_hosts, show_machine
    from megadeberta.launcher.hosts.doctor import examine_hosts

    console, progress = Console(), Console(stderr=True)
    if hostfile is None:
        with progress.status("looking …") as status:
            examination = examine(folder, os.environ, say=status.update)
        differing = []
        if as_json:
            typer.echo(json.dumps(examination.to_json()))
        else:
            show_machine(console, examination)
        examinations = [examination]
    else:
        with progress.status("asking all hosts …"):
            examinations = examine_hosts(hostfile, folder, environ=os.environ)
        differing = differences(examinations)
        if as_json:
            hosts = [each.to_json() for each in examinations]
            typer.echo(json.dumps({"hosts": hosts, "differences": [vars(each) for each in differing]}))
        else:
            show_hosts(console, examinations, differing)
    raise typer.Exit(EXIT_USAGE if differing or any(each.problems for each in examinations) else 0)
