"""What an examination found: one finding for each thing that was looked at."""

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any


class Status(StrEnum):
    """How much a finding matters."""

    OK = "ok"
    NOTE = "note"
    """Training runs, but something is slower than it could be or a feature is not there."""
    PROBLEM = "problem"
    """A run here fails, or one that should use the GPUs does not."""


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at."""

    area: str
    """Heading under which it is shown."""
    name: str
    found: str
    """What is there, in a few words."""
    status: Status = Status.OK
    remedy: str = ""
    """What to do, for everything that is not OK."""


@dataclass(frozen=True)
class Examination:
    """All findings about one machine."""

    host: str
    findings: tuple[Finding, ...]
    same_everywhere: Mapping[str, str]
    """Facts in which the machines of one run must not differ: versions and kinds of device."""

    @property
    def problems(self) -> list[Finding]:
        return [finding for finding in self.findings if finding.status is Status.PROBLEM]

    def to_json(self) -> dict[str, Any]:
        """What :meth:`from_json` reads."""
        return {
            "host": self.host,
            "findings": [asdict(finding) for finding in self.findings],
            "same_everywhere": dict(self.same_everywhere),
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> "Examination":
        """
        Raises:
            KeyError, TypeError, ValueError: ``value`` is not what :meth:`to_json` gave.
        """
        findings = (Finding(**{**each, "status": Status(each["status"])}) for each in value["findings"])
        return cls(value["host"], tuple(findings), dict(value["same_everywhere"]))


def differences(examinations: Iterable[Examination]) -> list[Finding]:
    """Facts that should be the same on all machines of a run and are not: one problem for each."""
    values: dict[str, dict[str, list[str]]] = {}
    for examination in examinations:
        for name, value in examination.same_everywhere.items():
            values.setdefault(name, {}).setdefault(value, []).append(examination.host)
    return [
        Finding(
            "differences",
            name,
            "; ".join(f"{value} on {_few(hosts)}" for value, hosts in by_value.items()),
            Status.PROBLEM,
            "install the same on all machines: ranks that differ can give other numbers or fail in the middle of a run",
        )
        for name, by_value in values.items()
        if len(by_value) > 1
    ]


def _few(hosts: list[str], most: int = 3) -> str:
    more = f" and {len(hosts) - most} more" if len(hosts) > most else ""
    return ", ".join(hosts[:most]) + more
