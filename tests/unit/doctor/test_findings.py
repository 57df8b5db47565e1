import pytest

from megadeberta.doctor.findings import Examination, Finding, Status, differences


def _examination(host: str, **facts: str) -> Examination:
    findings = (Finding("machine", "disk", "full", Status.PROBLEM, "free some"), Finding("machine", "memory", "8 GiB"))
    return Examination(host, findings, facts)


def test_an_examination_survives_json() -> None:
    examination = _examination("node1", torch="2.13.0")
    assert Examination.from_json(examination.to_json()) == examination
    assert [finding.name for finding in examination.problems] == ["disk"]


@pytest.mark.parametrize("value", [{}, {"host": "a", "findings": [{"status": "odd"}], "same_everywhere": {}}])
def test_what_is_no_examination_is_refused(value: dict) -> None:
    with pytest.raises((KeyError, TypeError, ValueError)):
        Examination.from_json(value)


def test_facts_that_differ_between_hosts_are_problems_that_name_the_hosts() -> None:
    hosts = [_examination(f"node{n}", torch="2.13.0", NCCL="2.28.9") for n in range(5)]
    hosts.append(_examination("odd", torch="2.12.1", NCCL="2.28.9"))
    (finding,) = differences(hosts)
    assert finding.status is Status.PROBLEM and finding.name == "torch"
    assert finding.found == "2.13.0 on node0, node1, node2 and 2 more; 2.12.1 on odd"
    assert differences(hosts[:5]) == []
