"""Two machines on one: each "node" is a pid, mount, network, uts and ipc namespace with an sshd of its own.

A third namespace is the switch between them, so that one node can lose its power while the other's network card stays
up. Nothing has a name outside: no `ip netns`, no interface, no port, no file outside the given folder. Every process is
a descendant of this one and dies with it, kill -9 included, and the namespaces with their last process.
"""

import ctypes
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import IO, Self

ADDRESSES = {"nodeA": "10.77.0.1", "nodeB": "10.77.0.2", "nodeC": "10.77.0.3"}
"""nodeC is the spare one."""
_BOOT_SECONDS = 20.0
_PR_SET_PDEATHSIG = 1
_NEEDED = {
    "pdsh": "pdsh",
    "ssh": "openssh-client",
    "ssh-keygen": "openssh-client",
    "/usr/sbin/sshd": "openssh-server",
    "ip": "iproute2",
    "unshare": "util-linux",
    "nsenter": "util-linux",
    "pkill": "procps",
    "hostname": "hostname",
}
_BOOT = """\
set -e
hostname {name}
mount -t tmpfs -o size=256m tmpfs /dev/shm
mount -t tmpfs tmpfs /run
mkdir /run/sshd
mount --bind {folder}/etc_hosts /etc/hosts
mount --bind {folder}/ssh_config /etc/ssh/ssh_config
if [ -d ~/.ssh ]; then mount -t tmpfs tmpfs ~/.ssh; fi
mkdir -p {folder}/own/{name} {folder}/own/mount
mount --bind {folder}/own/{name} {folder}/own/mount
ip link set lo up
exec /usr/sbin/sshd -D -e -f {folder}/sshd_config
"""
_SSHD_CONFIG = """\
HostKey {folder}/host_key
AuthorizedKeysFile {folder}/user_key.pub
StrictModes no
UsePAM no
PasswordAuthentication no
PermitRootLogin prohibit-password
PermitUserRC no
PidFile none
MaxStartups 100
LogLevel ERROR
"""
_SSH_CONFIG = """\
Host *
    IdentityFile {folder}/user_key
    IdentitiesOnly yes
    UserKnownHostsFile {folder}/known_hosts
    LogLevel ERROR
"""


def missing_requirements() -> list[str]:
    """What this machine lacks for the rehearsal, each with its remedy; empty when it can run."""
    if not hasattr(os, "unshare") and os.uname().sysname != "Linux":
        return ["Linux: namespaces exist nowhere else"]
    packages = sorted({package for tool, package in _NEEDED.items() if shutil.which(tool) is None})
    problems = []
    if os.geteuid() != 0:
        problems.append("root: making namespaces and network links is not allowed for others; try sudo")
    if packages:
        problems.append(f"on Debian: apt-get install {' '.join(packages)} (the system's sshd need not be started)")
    return problems


@dataclass
class Node:
    """A running node. ``init`` is its first process, by the id it has outside."""

    name: str
    init: int
    _unshare: subprocess.Popen[bytes] = field(repr=False)

    def command(self, words: Sequence[str], *, folder: Path) -> list[str]:
        """``words``, to be run on the node in ``folder``."""
        return ["nsenter", "--target", str(self.init), "--all", f"--wd={folder}", *words]

    def run(self, *words: str) -> None:
        """Run a short command on the node; its error is an exception."""
        _run(*self.command(words, folder=Path("/")))

    def processes_with(self, variable: str) -> list[int]:
        """Ids, as seen outside, of the node's processes that were started with an environment variable."""
        own = os.readlink(f"/proc/{self.init}/ns/pid")
        return [pid for pid in _all_processes() if _link(f"/proc/{pid}/ns/pid") == own and _has(pid, variable)]

    def kill(self) -> None:
        """kill -9 of the first process: the kernel ends all others of the namespace with it."""
        os.kill(self.init, signal.SIGKILL)
        self._unshare.wait()


class Cluster:
    """nodeA, nodeB and nodeC, up from ``__enter__`` to ``__exit__``; ``folder`` is the disk that both of them see.

    ``folder/own/mount`` is the exception: there each node has a disk of its own.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.nodes: dict[str, Node] = {}
        self._switch: Node | None = None
        self._log: IO[bytes] | None = None

    def __enter__(self) -> Self:
        self._write_files()
        self._log = (self.folder / "nodes.log").open("wb")
        try:
            self._switch = _start_namespace("switch", "exec sleep infinity", kinds=_SWITCH_KINDS, log=self._log)
            self._switch.run("ip", "link", "add", "bridge", "type", "bridge")
            self._switch.run("ip", "link", "set", "bridge", "up")
            for name in ADDRESSES:
                self.power_on(name)
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End every process of the nodes; their namespaces, links and mounts go with them."""
        for node in [*self.nodes.values(), self._switch]:
            if node is not None:
                node.kill()
        self.nodes.clear()
        self._switch = None
        self._log.close()

    def power_on(self, name: str) -> None:
        """Boot a node, plug it into the switch and wait until its sshd lets us in from every node that is up."""
        node = _start_namespace(name, _BOOT.format(name=name, folder=self.folder), kinds=_NODE_KINDS, log=self._log)
        self.nodes[name] = node
        switch = self._switch
        # The same network card as before: a new address would be unknown to the others' ARP tables.
        card = f"02:00:00:00:00:0{ADDRESSES[name][-1]}"
        peer = ["peer", "name", name, "netns", str(switch.init)]
        _run("ip", "link", "add", "eth0", "address", card, "netns", str(node.init), "type", "veth", *peer)
        node.run("ip", "address", "add", f"{ADDRESSES[name]}/24", "dev", "eth0")
        node.run("ip", "link", "set", "eth0", "up")
        switch.run("ip", "link", "set", name, "master", "bridge", "up")
        deadline = time.monotonic() + _BOOT_SECONDS
        for other in self.nodes.values():
            while not _succeeds(other.command(["ssh", "-o", "ConnectTimeout=2", name, "true"], folder=Path("/"))):
                if time.monotonic() > deadline:
                    raise RuntimeError(
                        f"{name} is not reachable by ssh from {other.name} {_BOOT_SECONDS:g} s after boot"
                    )
                time.sleep(0.2)

    def power_off(self, name: str) -> None:
        """The cable first, so that not even the kernel of the dying node says goodbye to its peers; then kill -9."""
        self.unplug(name)
        self.nodes.pop(name).kill()
        # The kernel removes the pair of the dead node some time later, if not now.
        _succeeds(self._switch.command(["ip", "link", "delete", name], folder=Path("/")))

    def unplug(self, name: str) -> None:
        """Cut a node off at the switch; its own network card stays up."""
        self._switch.run("ip", "link", "set", name, "down")

    def plug_in(self, name: str) -> None:
        """The reverse of ``unplug``."""
        self._switch.run("ip", "link", "set", name, "up")

    def start(
        self, name: str, words: Sequence[str], *, environ: Mapping[str, str], log: Path
    ) -> subprocess.Popen[bytes]:
        """Start a command on a node, in the shared folder; what it prints goes into ``log``."""
        with log.open("wb") as output:
            return subprocess.Popen(
                self.nodes[name].command(words, folder=self.folder),
                env=dict(environ),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                preexec_fn=_die_with_parent,
            )

    def _write_files(self) -> None:
        for key in ("host_key", "user_key"):
            _run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(self.folder / key))
        public = (self.folder / "host_key.pub").read_text()
        known = "".join(f"{name},{address} {public}" for name, address in ADDRESSES.items())
        (self.folder / "known_hosts").write_text(known)
        hosts = "127.0.0.1 localhost\n" + "".join(f"{address} {name}\n" for name, address in ADDRESSES.items())
        (self.folder / "etc_hosts").write_text(hosts)
        (self.folder / "sshd_config").write_text(_SSHD_CONFIG.format(folder=self.folder))
        (self.folder / "ssh_config").write_text(_SSH_CONFIG.format(folder=self.folder))


_SWITCH_KINDS = ("--net", "--pid", "--mount-proc")
_NODE_KINDS = ("--net", "--pid", "--mount-proc", "--uts", "--ipc")


def _start_namespace(name: str, script: str, *, kinds: Sequence[str], log: IO[bytes]) -> Node:
    process = subprocess.Popen(
        ["unshare", *kinds, "--mount", "--propagation", "private", "--fork", "--kill-child", "sh", "-c", script],
        stdin=subprocess.DEVNULL,
        stderr=log,
        start_new_session=True,
        preexec_fn=_die_with_parent,
    )
    deadline = time.monotonic() + _BOOT_SECONDS
    while not (children := Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()):
        if process.poll() is not None or time.monotonic() > deadline:
            raise RuntimeError(f"{name} did not start: unshare ended with code {process.returncode}")
        time.sleep(0.02)
    return Node(name, int(children[0]), process)


def _die_with_parent() -> None:
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _run(*words: str) -> None:
    result = subprocess.run(words, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    if result.returncode != 0:
        raise RuntimeError(f"`{' '.join(words)}` ended with code {result.returncode}: {result.stderr.strip()}")


def _succeeds(words: Sequence[str]) -> bool:
    return subprocess.run(words, stdin=subprocess.DEVNULL, capture_output=True, check=False).returncode == 0


def _all_processes() -> list[int]:
    return [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit()]


def _has(pid: int, variable: str) -> bool:
    try:
        environ = Path(f"/proc/{pid}/environ").read_bytes()
    except OSError:  # it ended meanwhile
        return False
    return any(entry.startswith(f"{variable}=".encode()) for entry in environ.split(b"\0"))


def _link(path: str) -> str | None:
    try:
        return os.readlink(path)
    except OSError:
        return None
