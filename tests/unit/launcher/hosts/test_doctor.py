import json
from pathlib import Path

import pytest

from megadeberta.doctor.findings import Examination, Finding, Status
from megadeberta.errors import ParallelError
from megadeberta.launcher.hosts import doctor
from megadeberta.launcher.hosts.pdsh import HostAnswer


def test_every_host_answers_for_itself_and_a_silent_one_is_a_problem(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sound = Examination("its-own-name", (Finding("machine", "memory", "8 GiB"),), {"torch": "2.13.0"})
    answers = {
        "node1": HostAnswer(output=json.dumps(sound.to_json()) + "\n"),
        "node2": HostAnswer(errors=["ssh: connect to host node2 port 22: No route to host"], code=255),
    }
    asked = []
    monkeypatch.setattr(doctor.shutil, "which", lambda *_, **__: "/usr/bin/pdsh")
    monkeypatch.setattr(doctor, "ask_nodes", lambda hosts, words, environ: (asked.append((hosts, words)), answers)[1])
    hostfile = tmp_path / "hosts"
    hostfile.write_text("node1 slots=8\nnode2 slots=8\n")
    first, second = doctor.examine_hosts(hostfile, Path("runs"), environ={})
    assert asked == [(["node1", "node2"], ["megadeberta", "doctor", "--json", "--folder", "runs"])]
    assert first.host == "node1" and first.same_everywhere == {"torch": "2.13.0"}
    assert second.problems[0].status is Status.PROBLEM and "No route to host" in second.problems[0].found


def test_without_pdsh_the_remedy_is_named(tmp_path: Path) -> None:
    hostfile = tmp_path / "hosts"
    hostfile.write_text("node1 slots=8\n")
    with pytest.raises(ParallelError, match="apt install pdsh"):
        doctor.examine_hosts(hostfile, Path("."), environ={"PATH": str(tmp_path)})
