"""Which machine is this?"""

import socket
from pathlib import Path


def machine_id() -> str:
    """What processes on one machine, in one container, have in common, and no two machines: machines, and containers
    of several, may share a host name, and containers of one machine its boot."""
    boot = Path("/proc/sys/kernel/random/boot_id")
    return f"{socket.gethostname()} {boot.read_text().strip() if boot.exists() else ''}"
