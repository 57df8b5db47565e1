"""Findings on a terminal, 80 columns wide or more."""

from collections.abc import Iterable
from itertools import groupby

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from megadeberta.doctor.findings import Examination, Finding, Status

_MARKS = {
    Status.OK: Text("ok", "green"),
    Status.NOTE: Text("note", "yellow"),
    Status.PROBLEM: Text("PROBLEM", "bold red"),
}


def show_machine(console: Console, examination: Examination) -> None:
    """One table for each area, and one line of summary."""
    for area, findings in groupby(examination.findings, key=lambda finding: finding.area):
        _show(console, area, findings)
    _summary(console, examination.host, examination.findings)


def show_hosts(console: Console, examinations: Iterable[Examination], differing: list[Finding]) -> None:
    """What is not as it should be on each host, and what differs between them."""
    for examination in examinations:
        wrong = [finding for finding in examination.findings if finding.status is not Status.OK]
        _show(console, examination.host, wrong)
        _summary(console, examination.host, examination.findings)
    if differing:
        _show(console, "differs between the hosts", differing)


def _show(console: Console, title: str, findings: Iterable[Finding]) -> None:
    table = Table(title=Text(title), title_justify="left", box=box.SIMPLE_HEAD, show_header=False, padding=(0, 1, 0, 0))
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold", max_width=22)
    table.add_column(overflow="fold")
    for finding in findings:
        text = Text(finding.found)
        if finding.remedy:
            text.append(f"\n→ {finding.remedy}", "italic")
        table.add_row(_MARKS[finding.status], Text(finding.name), text)
    if table.row_count:
        console.print(table)


def _summary(console: Console, host: str, findings: Iterable[Finding]) -> None:
    counts = dict.fromkeys(Status, 0)
    for finding in findings:
        counts[finding.status] += 1
    problems, notes = counts[Status.PROBLEM], counts[Status.NOTE]
    verdict = f"{problems} problem(s)" if problems else "no problem"
    console.print(Text(f"{host}: {verdict}, {notes} note(s), {counts[Status.OK]} ok"), soft_wrap=True)
