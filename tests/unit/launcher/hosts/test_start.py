"""Which machines a start takes: spare ones in the place of lost ones, and fewer where that is allowed."""

import signal
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from megadeberta.errors import ConfigError, ParallelError, StorageError
from megadeberta.launcher.hosts import start as module
from megadeberta.launcher.hosts.choice import HostChoice
from megadeberta.launcher.hosts.hostfile import read_hostfile
from megadeberta.launcher.hosts.pdsh import HostAnswer
from megadeberta.launcher.hosts.start import HostsStart
from megadeberta.launcher.signals import SignalInbox
from megadeberta.launcher.verdict import Verdict

FOUR = {"a": 8, "b": 8, "c": 8, "d": 8}


def test_a_start_takes_the_first_hosts_that_can_and_waits_where_they_are_too_few() -> None:
    choice = HostChoice(FOUR, spare=1)
    assert (choice.needed, choice.world_size) == (3, 24)
    assert choice.whole(FOUR) == ["a", "b", "c"]
    assert choice.whole({"a", "d", "c"}) == ["a", "c", "d"]
    assert choice.whole({"a", "d"}) == []
    assert choice.fewer({"a", "d"}) == []


def test_fewer_hosts_are_as_many_as_the_batch_divides_among() -> None:
    choice = HostChoice(FOUR, fewest=1, fits=lambda ranks: 64 % ranks == 0)
    assert choice.fewer({"b", "c", "d"}) == ["b", "c"]
    assert choice.fewer({"d"}) == ["d"]
    assert HostChoice(FOUR, fewest=3, fits=lambda ranks: 64 % ranks == 0).fewer({"b", "c", "d"}) == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"spare": 4}, r"--spare-hosts 4 leaves none of the hostfile's 4 hosts"),
        ({"spare": 2, "fewest": 3}, r"--fewest-hosts 3 must be between 1 and the 2 hosts that train"),
        ({"slots": {"a": 8, "b": 4}, "spare": 1}, r"same slots on each; the hostfile has a 8, b 4"),
    ],
)
def test_choices_that_cannot_be_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        HostChoice(**{"slots": FOUR} | options)
    HostChoice({"a": 8, "b": 4})


class _Machines:
    """Stands for pdsh and DeepSpeed's launcher: which hosts answer at each question, and what was started on which."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *able: str) -> None:
        self.able, self.asked, self.now = list(able), 0, 0.0
        self.started: list[tuple[dict[str, int], dict[str, Any]]] = []
        self.said: list[str] = []
        self.error: type[ParallelError | StorageError] = ParallelError
        monkeypatch.setattr(module, "ask_nodes", lambda hosts, words, environ: dict.fromkeys(hosts, HostAnswer()))
        monkeypatch.setattr(module, "launch_hosts", lambda command, *, hosts, **options: Verdict(0, (",".join(hosts),)))
        monkeypatch.setattr(module.time, "monotonic", lambda: self.now)
        monkeypatch.setattr(module.time, "sleep", self._sleep)

    def _sleep(self, seconds: float) -> None:
        self.now += seconds

    def _find_unfit(self, *, environ: Mapping[str, str]) -> dict[str, ParallelError | StorageError]:
        able = self.able[min(self.asked, len(self.able) - 1)]
        self.asked += 1
        return {host: self.error(f"{host} is gone") for host in FOUR if host not in able}

    def _command(self, hostfile: Path, **options: Any) -> list[str]:
        self.started.append((read_hostfile(hostfile), options))
        return ["runner"]

    def start(self, **choice: Any) -> HostsStart:
        return HostsStart(
            HostChoice(FOUR, **choice),
            command=self._command,
            find_unfit=self._find_unfit,
            environ={},
            say=self.said.append,
            master_addr="10.0.0.1",
        )


def test_a_spare_host_takes_the_place_of_a_lost_one_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    machines = _Machines(monkeypatch, "abcd", "acd", "bcd")
    start = machines.start(spare=1)
    start.check()
    with SignalInbox() as inbox:
        verdicts = [start(number, inbox).lines[0] for number in range(3)]
    assert verdicts == ["a,b,c", "a,c,d", "b,c,d"]
    assert machines.said == ["going on with d in the place of b", "going on with b in the place of a"]
    (hosts, options), *_, (_, last) = machines.started[1:]
    assert hosts == {"a": 8, "b": 8, "c": 8}
    assert options == {"master_port": 29500, "master_addr": "10.0.0.1"}
    assert last == {"master_port": 29502, "master_addr": None}, "the address is that of host a"
    assert machines.now == 0


def test_a_run_waits_for_its_hosts_a_minute_before_it_goes_on_with_fewer_and_takes_them_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    machines = _Machines(monkeypatch, "abcd", *["abc"] * 13, "abcd")
    start = machines.start(fewest=1, fits=lambda ranks: ranks in (16, 32))
    start.check()
    with SignalInbox() as inbox:
        verdicts = [start(number, inbox).lines[0] for number in range(3)]
    assert verdicts == ["a,b,c,d", "a,b", "a,b,c,d"]
    assert machines.said[0] == (
        "going on with 2 of 4 machines, 16 of 32 ranks: a, b; the batch of a step stays as it is"
    )
    assert machines.said[1].startswith("going on with 4 of 4 machines, 32 of 32 ranks")
    assert 60 <= machines.now < 70


def test_without_spare_ones_it_waits_ten_minutes_and_ends_with_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    machines = _Machines(monkeypatch, "abcd", "abc")
    start = machines.start()
    start.check()
    with SignalInbox() as inbox:
        verdict = start(1, inbox)
    assert (verdict.exit_code, verdict.lines) == (80, ("error: not all machines came back within 600 s: d is gone",))


def test_a_signal_ends_the_wait_and_a_full_disk_too(monkeypatch: pytest.MonkeyPatch) -> None:
    machines = _Machines(monkeypatch, "abcd", "abc")
    start = machines.start()
    start.check()
    with SignalInbox() as inbox:
        signal.raise_signal(signal.SIGTERM)
        assert start(1, inbox).exit_code == 75
        machines.error = StorageError
        with pytest.raises(StorageError, match="d is gone"):
            start(1, inbox)


def test_an_unfit_host_stops_the_first_start_and_an_unfit_spare_one_is_a_warning(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    machines = _Machines(monkeypatch, "abd")
    with pytest.raises(ParallelError, match="c is gone"):
        machines.start().check()
    start = machines.start(spare=1)
    start.check()
    assert start.hosts == ["a", "b", "d"]
    assert machines.said == ["warning: without a host: c is gone"]
