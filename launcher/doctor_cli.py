"""``megadeberta doctor``: this machine, or those of a hostfile. Torch runs in processes of its own."""

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from megadeberta.config.waiting import Waiting
from megadeberta.errors import EXIT_USAGE

if TYPE_CHECKING:
    from megadeberta.doctor.findings import Examination, Finding


def doctor(
    hostfile: Annotated[
        Path | None, typer.Option(help="Examine the hosts of this file over ssh, and compare them", show_default=False)
    ] = None,
    folder: Annotated[Path, typer.Option(help="Where runs are to lie: its disk is tried")] = Path("."),
    as_json: Annotated[bool, typer.Option("--json", help="Everything as one JSON object")] = False,
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
    from megadeberta.launcher.hosts.doctor import examine_hosts

    if hostfile is None:
        with Waiting("looking") as waiting:
            examinations = [examine(folder, os.environ, say=waiting.say)]
    else:
        with Waiting("asking all hosts"):
            examinations = examine_hosts(hostfile, folder, environ=os.environ)
    differing = differences(examinations)
    _print(examinations, differing, as_json=as_json, several=hostfile is not None)
    raise typer.Exit(EXIT_USAGE if differing or any(each.problems for each in examinations) else 0)


def _print(examinations: "list[Examination]", differing: "list[Finding]", *, as_json: bool, several: bool) -> None:
    from megadeberta.doctor.show import show_hosts, show_machine

    hosts = [each.to_json() for each in examinations]
    if as_json:
        whole = {"hosts": hosts, "differences": [vars(each) for each in differing]}
        typer.echo(json.dumps(whole if several else hosts[0]))
    elif several:
        show_hosts(Console(), examinations, differing)
    else:
        show_machine(Console(), examinations[0])
