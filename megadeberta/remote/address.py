"""How an address such as ``s3://bucket/set`` is written, and what a ``Path`` keeps of it.

A ``Path`` makes one slash of several. Between a protocol and a host that is no loss, as there are always two; but
``hdfs:///user`` has no host, and ``hdfs://user`` a wrong one. So the empty host is put down as a step of the path.
"""

import re
from pathlib import PurePath
from typing import Any, NamedTuple

_ADDRESS = re.compile(r"([a-z][a-z0-9+.-]+):(/+(?:\0/)?)(.+)")
_NO_HOST = "\0"
"""A step that no path has."""
_OF_THIS_MACHINE = ("file", "local")
"""Their addresses name no host, but the root."""


class Address(NamedTuple):
    """The parts of an address."""

    protocol: str
    has_host: bool
    rest: str

    def __str__(self) -> str:
        return f"{self.protocol}:{'//' if self.has_host else '///'}{self.rest}"


def read_address(text: str) -> Address | None:
    """The address that a text is, or the text of a ``Path`` that holds one; None for a path of this machine."""
    found = _ADDRESS.fullmatch(text)
    if found is None:
        return None
    protocol, slashes, rest = found.groups()
    return Address(protocol, len(slashes) < 3 and protocol not in _OF_THIS_MACHINE, rest)


def keep_empty_host(given: Any) -> Any:
    """A text that a ``Path`` can be made of without losing that its host is empty; anything else as it is."""
    if not isinstance(given, str) or isinstance(given, PurePath):
        return given
    address = read_address(given)
    if address is None or address.has_host or address.protocol in _OF_THIS_MACHINE:
        return given
    return f"{address.protocol}:/{_NO_HOST}/{address.rest}"
