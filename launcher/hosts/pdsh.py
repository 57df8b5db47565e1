"""Our own short rounds over all machines, beside DeepSpeed's: what each said, and how its ssh ended."""

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

# A host that is switched off says nothing: ssh would wait forever. Before the connection 10 s, later 30 s.
_SSH_OPTIONS = "-oBatchMode=yes -oConnectTimeout=10 -oServerAliveInterval=10 -oServerAliveCountMax=3"
_FAN_OUT = "1024"
_EXIT = re.compile(r"pdsh@[^:]*: (\S+): ssh (?:exited with exit code (\d+)|killed by signal \d+)")
CONNECTION_LOST = 255


@dataclass
class HostAnswer:
    """What one host printed, and the exit code of its ssh: the command's, or ``CONNECTION_LOST``."""

    output: str = ""
    errors: list[str] = field(default_factory=list)
    code: int = 0


def ssh_environment(environ: Mapping[str, str]) -> dict[str, str]:
    """``environ`` with which pdsh uses ssh, and ssh gives up on a silent host. The user's own ssh words come first."""
    own = environ.get("PDSH_SSH_ARGS_APPEND", "")
    return {**environ, "PDSH_RCMD_TYPE": "ssh", "PDSH_SSH_ARGS_APPEND": f"{own} {_SSH_OPTIONS}".strip()}


def node_command(hosts: Sequence[str], words: Sequence[str], *, environ: Mapping[str, str]) -> list[str]:
    """pdsh's command for ``python -m WORDS`` on ``hosts``, in this folder, with this Python's path."""
    line = f"cd {shlex.quote(os.getcwd())} && "
    if environ.get("PYTHONPATH"):
        line += f"PYTHONPATH={shlex.quote(environ['PYTHONPATH'])} "
    line += shlex.join([sys.executable, "-m", *words])
    return ["pdsh", "-S", "-f", _FAN_OUT, "-w", ",".join(hosts), line]


def ask_nodes(hosts: Sequence[str], words: Sequence[str], *, environ: Mapping[str, str]) -> dict[str, HostAnswer]:
    """Run ``python -m WORDS`` on all hosts and wait."""
    result = subprocess.run(
        node_command(hosts, words, environ=environ),
        env=ssh_environment(environ),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        errors="replace",
        check=False,
    )
    labels = host_labels(hosts)
    answers = {host: HostAnswer() for host in hosts}
    for line in result.stdout.splitlines():
        label, _, text = line.partition(": ")
        if label in labels:
            answers[labels[label]].output += text + "\n"
    for line in result.stderr.splitlines():
        ended = parse_exit(line)
        label, _, text = line.partition(": ")
        if ended is not None and ended[0] in labels:
            answers[labels[ended[0]]].code = ended[1]
        elif label in labels and text.strip():
            answers[labels[label]].errors.append(text.strip())
    return answers


def parse_exit(line: str) -> tuple[str, int] | None:
    """Label and exit code, if the line is pdsh's own about the end of an ssh that failed."""
    match = _EXIT.fullmatch(line.strip())
    return (match[1], int(match[2] or CONNECTION_LOST)) if match else None


def host_labels(hosts: Sequence[str]) -> dict[str, str]:
    """pdsh's label of each host -> the host: it leaves the domain out where the names stay different."""
    short = {host.split(".")[0]: host for host in hosts if not re.fullmatch(r"[\d.]+|.*:.*", host)}
    return short | {host: host for host in hosts}
