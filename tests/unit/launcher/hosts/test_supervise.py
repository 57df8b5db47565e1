"""A run on several machines is supervised: signals, failures and silence of one reach all, and the code tells why."""

import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from megadeberta.errors import ParallelError, StorageError
from megadeberta.launcher.hosts import pdsh, supervise
from megadeberta.launcher.hosts.supervise import find_unfit_hosts, launch_hosts
from megadeberta.launcher.verdict import Verdict
from tests.models import recipe, write_json
from tests.unit.launcher.hosts.fake_hosts import install_pdsh, runner_command

HOSTS = ["nodeA", "nodeB"]


@pytest.fixture(autouse=True)
def machines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two machines, short patience, and the folder that both see."""
    install_pdsh(tmp_path, monkeypatch)
    monkeypatch.setenv("PYTHONPATH", os.getcwd())
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    for name in ("_NOTICE_SECONDS", "_TERM_SECONDS"):
        monkeypatch.setattr(supervise, name, 0.5)
    return tmp_path


def _launch(program: str) -> Verdict:
    return launch_hosts(runner_command(HOSTS, program), hosts=HOSTS, environ=os.environ)


def _when(condition: Callable[[], bool], act: Callable[[], object]) -> threading.Thread:
    """Act from a thread as soon as the condition holds."""

    def watch() -> None:
        deadline = time.monotonic() + 60
        while not condition() and time.monotonic() < deadline:
            time.sleep(0.02)
        act()

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    return thread


def _noted(folder: Path, name: str) -> Callable[[], bool]:
    return lambda: all((folder / f"{name}.{rank}").exists() for rank in range(len(HOSTS)))


def _is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_ranks_that_end_well_end_the_job_well(machines: Path) -> None:
    verdict = _launch('note(os.environ["MEGADEBERTA_STARTED_BY"].replace(" ", "_"))')
    assert (verdict.exit_code, verdict.lines) == (0, ())
    assert (machines / "megadeberta_launch_--hostfile.1").exists()


def test_signal_reaches_the_ranks_of_every_machine_and_no_other_job(machines: Path) -> None:
    program = """
signal.signal(signal.SIGTERM, lambda *_: (note("told"), sys.exit(75)))
worker = rank == 0 and os.fork() == 0
note("worker") if worker else note("ready")
time.sleep(60)
"""
    other = os.spawnve(os.P_NOWAIT, "/bin/sleep", ["sleep", "60"], {"RANK": "0", "MEGADEBERTA_JOB": "of-somebody-else"})
    _when(_noted(machines, "ready"), lambda: os.kill(os.getpid(), signal.SIGINT))
    try:
        verdict = _launch(program)
        assert _is_running(other)
    finally:
        os.kill(other, signal.SIGKILL)
        os.waitpid(other, 0)
    assert (verdict.exit_code, verdict.lines) == (75, ())
    assert _noted(machines, "told")()


def test_signal_reaches_ranks_that_write_without_a_pause(machines: Path) -> None:
    program = """
signal.signal(signal.SIGTERM, lambda *_: sys.exit(75))
note("ready")
for step in range(2000):
    print("step", step, file=sys.stderr, flush=True)
    time.sleep(0.01)
"""
    _when(_noted(machines, "ready"), lambda: os.kill(os.getpid(), signal.SIGTERM))
    verdict = _launch(program)
    assert (verdict.exit_code, verdict.lines) == (75, ())


def test_killed_rank_ends_the_ranks_on_other_machines(machines: Path) -> None:
    program = 'signal.signal(signal.SIGTERM, signal.SIG_IGN); note("ready"); time.sleep(60)'
    _when(_noted(machines, "ready"), lambda: os.kill(int((machines / "ready.1").read_text()), signal.SIGKILL))
    started = time.monotonic()
    verdict = _launch(program)
    assert time.monotonic() - started < 40
    assert verdict.exit_code == 80
    assert verdict.lines == ("error: a rank on nodeB was killed by SIGKILL; the same command resumes",)
    assert not _is_running(int((machines / "ready.0").read_text()))


def test_own_error_of_one_machine_wins_over_the_lost_peers(machines: Path) -> None:
    verdict = _launch("time.sleep(0.3 * (1 - rank)); sys.exit(77 if rank else 80)")
    assert verdict.exit_code == 77
    assert verdict.lines == ("error: a rank on nodeB ended with code 77; its last lines are above",)


def test_machine_that_is_switched_off_ends_the_others(machines: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GONE_HOSTS", "nodeB")
    verdict = _launch('note("ready"); rank and sys.exit(255); time.sleep(60)')
    assert verdict.exit_code == 80
    assert verdict.lines == ("error: the connection to nodeB was lost; the same command resumes",)
    assert not _is_running(int((machines / "ready.0").read_text()))


def test_ranks_that_outlive_deepspeeds_launcher_are_killed(machines: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PDSH_DIES", "1")
    verdict = _launch('note("ready"); time.sleep(60)')
    assert verdict.exit_code == 80
    assert verdict.lines[0].startswith("error: pdsh ended before the ranks on nodeA")
    assert not any(_is_running(int((machines / f"ready.{rank}").read_text())) for rank in range(2))


def test_third_interrupt_kills_ranks_that_do_not_listen(machines: Path) -> None:
    def interrupt() -> None:
        for _ in range(3):
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.5)

    _when(_noted(machines, "ready"), interrupt)
    verdict = _launch('signal.signal(signal.SIGTERM, signal.SIG_IGN); note("ready"); time.sleep(60)')
    assert (verdict.exit_code, verdict.lines) == (130, ("killed after 3 interrupts; the same command resumes",))
    assert not any(_is_running(int((machines / f"ready.{rank}").read_text())) for rank in range(2))


@pytest.fixture
def tiny(machines: Path, prepared: Path) -> list[str]:
    """Words of a recipe that runs."""
    data = {"train": str(prepared / "train"), "tokenizer": str(prepared / "tokenizer" / "spm.model")}
    return [str(write_json(machines / "tiny.json", recipe(data=data, training={"output_dir": str(machines / "run")})))]


def _check(words: list[str]) -> None:
    for error in find_unfit_hosts(HOSTS, words, world_size=2, environ=os.environ).values():
        raise error


def test_machines_with_the_same_versions_and_files_pass(tiny: list[str]) -> None:
    _check([*tiny, "optimizer.lr=5e-4"])


def test_machine_without_connection_is_named_with_what_ssh_said(
    tiny: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GONE_HOSTS", "nodeB")
    with pytest.raises(ParallelError, match=r"nodeB cannot run this: ssh: connect .* timed out\. .*`ssh nodeB true`"):
        _check(tiny)


def test_machine_that_cannot_run_the_recipe_is_named_with_the_reason(machines: Path) -> None:
    with pytest.raises(ParallelError, match=r"on nodeA: recipe none\.json does not exist"):
        _check(["none.json"])


def _pretend_answers(monkeypatch: pytest.MonkeyPatch, *answers: str) -> None:
    def ask(hosts: list[str], words: list[str], **options: object) -> dict[str, pdsh.HostAnswer]:
        return {host: pdsh.HostAnswer(output=text) for host, text in zip(hosts, answers, strict=True)}

    monkeypatch.setattr(supervise, "ask_nodes", ask)


def test_versions_that_differ_are_refused_with_both_machines(monkeypatch: pytest.MonkeyPatch) -> None:
    _pretend_answers(monkeypatch, '{"facts": {"torch": "2.13.0"}}', '{"facts": {"torch": "2.12.1"}}')
    with pytest.raises(
        ParallelError, match=r"torch differs .*: 2\.13\.0 on nodeA, 2\.12\.1 on nodeB; install the same"
    ):
        _check(["r.json"])


def test_full_disk_of_a_machine_keeps_its_exit_code(monkeypatch: pytest.MonkeyPatch) -> None:
    _pretend_answers(monkeypatch, '{"facts": {}}', '{"error": "out cannot be written: full", "exit_code": 79}')
    with pytest.raises(StorageError, match=r"on nodeB: out cannot be written: full"):
        _check(["r.json"])
