"""pdsh's lines: which machine, and how its ssh ended."""

import pytest

from megadeberta.launcher.hosts.pdsh import host_labels, parse_exit, ssh_environment


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("pdsh@login: nodeB: ssh exited with exit code 255\n", ("nodeB", 255)),
        ("pdsh@login: fe80::1: ssh exited with exit code 80", ("fe80::1", 80)),
        ("pdsh@login: nodeB: ssh killed by signal 9", ("nodeB", 255)),
        ("nodeB: pdsh@login: nodeA: ssh exited with exit code 1", None),
        ("nodeA: step 10 loss 6.1", None),
    ],
)
def test_end_of_ssh_is_recognized(line: str, expected: tuple[str, int] | None) -> None:
    assert parse_exit(line) == expected


def test_host_is_found_by_its_name_with_and_without_domain_but_not_by_a_part_of_its_address() -> None:
    labels = host_labels(["a1.x.org", "b2", "10.0.0.7"])
    assert labels == {"a1": "a1.x.org", "a1.x.org": "a1.x.org", "b2": "b2", "10.0.0.7": "10.0.0.7"}


def test_ssh_gives_up_on_silent_machines_and_the_users_words_come_first() -> None:
    own = ssh_environment({"PDSH_SSH_ARGS_APPEND": "-oServerAliveInterval=60", "A": "1"})
    assert own["A"] == "1"
    words = own["PDSH_SSH_ARGS_APPEND"].split()
    assert words[0] == "-oServerAliveInterval=60", "ssh takes the first value of an option"
    assert "-oServerAliveCountMax=3" in words
    assert "-oBatchMode=yes" in words
    assert own["PDSH_RCMD_TYPE"] == "ssh"
