"""A collective that failed because another rank is gone is not this rank's bug: say so, with its own exit code."""

import re
from collections.abc import Iterator
from contextlib import contextmanager

from torch import distributed

from megadeberta.errors import PeerLostError

_SIGNS = re.compile(
    r"connection (closed|reset|refused)|broken pipe|timed out|timeout|socket|no route to host|remote process exited|"
    r"ncclRemoteError|unhandled system error|heartbeat",
    re.IGNORECASE,
)

_PLACE = re.compile(r"\[?[\w./+-]+\.(?:cc|cpp|cu|h|hpp):\d+\]?,? ?")
"""In the source of a library: of no use to who reads the line."""


@contextmanager
def raise_peer_loss() -> Iterator[None]:
    """Turn gloo's and NCCL's errors about a lost or silent peer into PeerLostError.

    Raises:
        PeerLostError: naming the first line of what the backend said.
    """
    try:
        yield
    except (distributed.DistError, RuntimeError) as error:
        text = str(error)
        from_backend = isinstance(error, distributed.DistError) or "gloo" in text or "NCCL" in text
        if not (from_backend and _SIGNS.search(text)):
            raise
        first_line = _PLACE.sub("", text.strip().splitlines()[0])[:200]
        raise PeerLostError(
            f"another rank ended or stopped answering ({first_line}); its own message, if it had one, is above. "
            "The same command resumes from the last checkpoint"
        ) from error
