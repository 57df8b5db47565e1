"""A rank of another machine that says nothing: hung if the machine answers, lost with it if not."""

import os
from pathlib import Path

import pytest

from megadeberta.config.training import SupervisionConfig
from megadeberta.launcher.hosts.supervise import HostsRun, launch_hosts
from megadeberta.launcher.watch import Supervised
from tests.unit.launcher.hosts.fake_hosts import install_pdsh, runner_command

HOSTS = ["nodeA", "nodeB"]
RUN = HostsRun(Supervised(SupervisionConfig(step_seconds=5, silence_seconds=5)), HOSTS)
# As a training rank says it; rank 1 is then stopped.
PROGRAM = """
sys.path.insert(0, os.environ["PYTHONPATH"])
from megadeberta.rank.heartbeat import Heartbeat, Phase
heartbeat = Heartbeat(rank, pause=0.2)
heartbeat.start(os.environ)
for step in range(1, 4):
    heartbeat.enter(Phase.STEP, step)
    time.sleep(0.3)
rank and os.kill(os.getpid(), signal.SIGSTOP)
time.sleep(60)
"""


@pytest.mark.parametrize(
    ("gone", "code", "line"),
    [
        ("", 76, "error: rank 1 on nodeB hung: silent for 5 s, in step 3"),
        ("nodeB", 80, "error: the connection to nodeB was lost; the same command resumes"),
    ],
    ids=["machine answers", "machine is gone"],
)
def test_silent_rank_is_hung_or_its_machine_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, gone: str, code: int, line: str
) -> None:
    install_pdsh(tmp_path, monkeypatch)
    monkeypatch.setenv("PYTHONPATH", os.getcwd())
    monkeypatch.setenv("GONE_HOSTS", gone)
    monkeypatch.chdir(tmp_path)
    verdict = launch_hosts(runner_command(HOSTS, PROGRAM), hosts=HOSTS, environ=os.environ, run=RUN)
    assert verdict.exit_code == code
    assert verdict.lines[0].startswith(line)
    assert verdict.trained
