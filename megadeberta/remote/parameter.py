"""Paths and addresses on the command line."""

from pathlib import Path

from megadeberta.remote.address import keep_empty_host


def path_or_address(text: str) -> Path:
    """A path, or an address as one, whose empty host is kept; a ``parser`` of typer."""
    return Path(keep_empty_host(text))
