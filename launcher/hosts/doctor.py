"""`megadeberta doctor` on every host of a file at once."""

import json
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from megadeberta.doctor.findings import Examination, Finding, Status
from megadeberta.errors import ParallelError
from megadeberta.launcher.hosts.hostfile import read_hostfile
from megadeberta.launcher.hosts.pdsh import HostAnswer, ask_nodes


def examine_hosts(hostfile: Path, folder: Path, *, environ: Mapping[str, str]) -> list[Examination]:
    """What each host says of itself, in the order of the file; a host that does not answer is a problem of its own.

    Raises:
        ParallelError: a bad hostfile, or pdsh is missing.
    """
    hosts = read_hostfile(hostfile)
    if shutil.which("pdsh", path=environ.get("PATH")) is None:
        raise ParallelError("pdsh is not installed; run `apt install pdsh openssh-client`, or run doctor on each host")
    words = ["megadeberta", "doctor", "--json", "--folder", str(folder)]
    answers = ask_nodes(list(hosts), words, environ=environ)
    return [_examination(host, answer) for host, answer in answers.items()]


def _examination(host: str, answer: HostAnswer) -> Examination:
    try:
        return replace(Examination.from_json(json.loads(answer.output.splitlines()[-1])), host=host)
    except (IndexError, KeyError, TypeError, ValueError):
        said = "; ".join(answer.errors[-2:]) or f"exit code {answer.code}, without a word"
        remedy = f"it needs ssh without a password (try `ssh {host} true`), and the same Python at the same path"
        return Examination(host, (Finding("software", "megadeberta doctor", said, Status.PROBLEM, remedy),), {})
