"""`megadeberta launch` before anything starts: what it refuses, and what it would run."""

import socket
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

import megadeberta.launcher.cli
import megadeberta.launcher.hosts.start
from megadeberta.cli import app
from megadeberta.errors import ConfigError, ParallelError
from megadeberta.launcher.verdict import Verdict
from tests.models import recipe, write_json
from tests.unit.launcher.hosts.fake_hosts import install_pdsh


@pytest.fixture
def path(tmp_path: Path, prepared: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A valid recipe, whose shards exist, in an otherwise empty working folder."""
    monkeypatch.chdir(tmp_path)
    data = {"train": str(prepared / "train"), "tokenizer": str(prepared / "tokenizer" / "spm.model")}
    return write_json(tmp_path / "tiny.json", recipe(data=data, training={"output_dir": str(tmp_path / "run")}))


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[tuple[list[str], dict]]:
    """Commands that would have been started."""
    calls: list[tuple[list[str], dict]] = []

    def pretend(command: list[str], **options: object) -> Verdict:
        calls.append((command, options))
        return Verdict(77, ("error: loss is nan",))

    monkeypatch.setattr(megadeberta.launcher.cli, "launch_local", pretend)
    return calls


def _launch(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["launch", *map(str, arguments)])


def test_each_rank_runs_train_with_the_overrides_and_what_follows_the_dashes(
    path: Path, started: list[tuple[list[str], dict]]
) -> None:
    _launch(path, "--ranks", 2, "--set", "optimizer.lr=5e-4", "--set", "description=a b", "--", "--dry-run")
    (command, options) = started[0]
    assert command[:4] == [sys.executable, "-m", "megadeberta", "train"]
    assert command[4:] == [str(path), "--set", "optimizer.lr=5e-4", "--set", "description=a b", "--dry-run"]
    assert (options["ranks"], options["master_port"]) == (2, None)


def test_exit_code_and_lines_are_those_of_the_ranks(path: Path, started: list[tuple[list[str], dict]]) -> None:
    result = _launch(path)
    assert result.exit_code == 77
    assert result.stderr == "error: loss is nan\n"
    assert started[0][1]["ranks"] == 1


def test_each_visible_device_gets_a_rank(
    path: Path, started: list[tuple[list[str], dict]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1,2,3")
    _launch(path)
    assert started[0][1]["ranks"] == 4


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (["none.json"], ConfigError, r"recipe none\.json does not exist; did you mean tiny\.json"),
        (["tiny.json", "--set", "optimizer.rl=1"], ConfigError, r"unknown key optimizer\.rl; did you mean 'lr'"),
        (["tiny.json", "--ranks", "3"], ConfigError, r"train_batch_size=16 is not a multiple of .* x 3 data-parallel"),
        (["tiny.json", "--hostfile", "h", "--ranks", "2"], ConfigError, r"--hostfile gives the ranks of every machine"),
        (["tiny.json", "--hostfile", "h", "--slurm", "2"], ConfigError, r"leave --ranks and --slurm out"),
        (["tiny.json", "--spare-hosts", "1"], ConfigError, r"choose among the machines of a --hostfile, and there is"),
        (["tiny.json", "--hostfile", "h"], ParallelError, r"hostfile h cannot be read: No such file"),
        (["tiny.json", "--slurm", "3", "--ranks", "1"], ConfigError, r"x 3 data-parallel rank"),
        (["tiny.json", "--slurm", "2"], ConfigError, r"no GPU is here to be counted; .*: --ranks 8"),
        (["tiny.json", "--set", "training.output_dir=tiny.json"], ConfigError, r"a file of that name is in the way"),
    ],
)
def test_mistake_is_found_before_any_rank_starts(
    path: Path, started: list[tuple[list[str], dict]], arguments: list[str], error: type[Exception], message: str
) -> None:
    result = _launch(*arguments)
    with pytest.raises(error, match=message):
        raise result.exception
    assert started == []


def test_missing_compiler_is_found_before_any_rank_starts(
    path: Path, started: list[tuple[list[str], dict]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    offload = 'deepspeed.zero_optimization={"stage": 2, "offload_optimizer": {"device": "cpu"}}'
    with pytest.raises(ConfigError, match=r"g\+\+ and ninja is not installed; run `apt install g\+\+ ninja-build`"):
        raise _launch(path, "--set", offload).exception
    assert started == []


def test_port_in_use_is_refused(path: Path) -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(1)
        result = _launch(path, "--master-port", listener.getsockname()[1])
    with pytest.raises(ParallelError, match=r"master port \d+ is in use by another process"):
        raise result.exception


def test_launch_inside_srun_is_refused(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    variables = {"SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_STEP_ID": "0", "SLURM_NTASKS": "8"}
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ParallelError, match=r"srun has started 8 processes already; give it `megadeberta train`"):
        raise _launch(path).exception


def test_slurm_prints_a_script_and_starts_nothing(path: Path, started: list[tuple[list[str], dict]]) -> None:
    result = _launch(path, "--slurm", 2, "--ranks", 2)
    assert result.exit_code == 0
    assert "#SBATCH --nodes=2\n" in result.stdout
    assert f"megadeberta train {path}" in " ".join(result.stdout.replace("\\", "").split())
    assert started == []


def test_hostfile_is_checked_on_every_machine_and_handed_to_the_deepspeed_launcher(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install_pdsh(path.parent, monkeypatch)
    monkeypatch.setenv("PYTHONPATH", str(Path(megadeberta.launcher.cli.__file__).parents[1]))
    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", "canary")
    calls: list[tuple[list[str], list[str]]] = []

    def pretend(command: list[str], *, hosts: list[str], **options: object) -> Verdict:
        calls.append((command, hosts))
        return Verdict(80, ("error: the connection to node2 was lost",))

    monkeypatch.setattr(megadeberta.launcher.hosts.start, "launch_hosts", pretend)
    (path.parent / "hosts").write_text("node1 slots=2\nnode2 slots=2\n")
    words = ["tiny.json", "--hostfile", "hosts", "--set", "training.seed=7"]
    result = _launch(*words, "--restarts", 0, "--master-port", 29777, "--master-addr", "10.0.0.1")
    assert (result.exit_code, result.stderr) == (80, "error: the connection to node2 was lost\n")
    ((command, hosts),) = calls
    assert command[:3] == [sys.executable, "-m", "deepspeed.launcher.runner"]
    assert command[-6:] == ["--module", "megadeberta", "train", "tiny.json", "--set", "training.seed=7"]
    assert "--master_port 29777 --master_addr 10.0.0.1" in " ".join(command)
    assert hosts == ["node1", "node2"]
    _launch(*words, "--restarts", 0, "--spare-hosts", 1)
    assert calls[-1][1] == ["node1"]
    monkeypatch.setenv("GONE_HOSTS", "node2")
    with pytest.raises(ParallelError, match=r"node2 cannot run this: ssh: connect to host node2"):
        raise _launch(*words).exception
