"""TCP ports of the rendezvous."""

import errno
import socket

from megadeberta.errors import ParallelError

LOOPBACK = "127.0.0.1"


def pick_free_port() -> int:
    """A port of 127.0.0.1 that nobody listens on now."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.bind((LOOPBACK, 0))
        return probe.getsockname()[1]


def check_port_free(port: int) -> None:
    """Refuse a rendezvous port that another process listens on.

    torch's store listens on all interfaces, so the check does too.

    Raises:
        ParallelError: the port is taken, not allowed or not a port.
    """
    if not 0 < port < 65_536:
        raise ParallelError(f"master port {port} is not a port; choose one between 1024 and 65535")
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        # As the store does: a port whose last connections are in TIME_WAIT is free, a listener's is not.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("", port))
            probe.listen(1)
        except OSError as error:
            if error.errno not in (errno.EADDRINUSE, errno.EACCES):
                raise
            reason = "in use by another process" if error.errno == errno.EADDRINUSE else "reserved for root"
            raise ParallelError(
                f"master port {port} is {reason}; choose another with --master-port or MASTER_PORT, or give none to "
                "`megadeberta launch` and a free one is picked"
            ) from None
