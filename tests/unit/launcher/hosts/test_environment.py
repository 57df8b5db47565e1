"""What of the environment reaches other machines: plain values that a rank needs, and no secret."""

from pathlib import Path

import pytest

from megadeberta.errors import ConfigError
from megadeberta.launcher.hosts.environment import (
    check_variables,
    environment_lines,
    forwarded_variables,
    launcher_environment,
)


@pytest.fixture
def environ(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """A home folder, and an empty working folder in it."""
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)
    return {"HOME": str(tmp_path)}


def _values(environ: dict[str, str]) -> dict[str, str]:
    return dict(line.split("=", maxsplit=1) for line in environment_lines(environ, job="1f"))


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("A=$(id)", r"\.deepspeed_env:2: the value of A holds"),
        ("A=`id`", r"the value of A holds"),
        ("A=$HOME", r"the value of A holds"),
        ('A="x', r"the value of A holds"),
        ("", r"'' is not NAME=VALUE"),
        ("# comment", r"is not NAME=VALUE"),
        ("A B=1", r"is not NAME=VALUE"),
    ],
)
@pytest.mark.parametrize("folder", ["work", "."])
def test_environment_file_that_would_run_commands_is_refused(
    environ: dict[str, str], tmp_path: Path, folder: str, line: str, message: str
) -> None:
    (tmp_path / folder / ".deepspeed_env").write_text(f"NCCL_DEBUG=INFO\n{line}\nB=1\n")
    with pytest.raises(ConfigError, match=message):
        environment_lines(environ, job="1f")


def test_ranks_learn_their_job_their_launcher_and_what_chooses_device_network_and_threads(
    environ: dict[str, str],
) -> None:
    environ |= {
        "DS_ACCELERATOR": "cpu",
        "GLOO_SOCKET_IFNAME": "eth0",
        "OMP_NUM_THREADS": "4",
        "CUDA_VISIBLE_DEVICES": "1",
    }
    assert _values(environ) == {
        "DS_ACCELERATOR": "cpu",
        "GLOO_SOCKET_IFNAME": "eth0",
        "OMP_NUM_THREADS": "4",
        "TORCH_CPP_LOG_LEVEL": "ERROR",
        "MEGADEBERTA_JOB": "1f",
        "MEGADEBERTA_STARTED_BY": "megadeberta launch --hostfile",
    }


def test_files_of_the_user_win_over_the_shell_and_the_working_folder_over_the_home_folder(
    environ: dict[str, str], tmp_path: Path
) -> None:
    (tmp_path / ".deepspeed_env").write_text("NCCL_DEBUG=INFO\nGLOO_SOCKET_IFNAME=ib0\n")
    (tmp_path / "work" / ".deepspeed_env").write_text("GLOO_SOCKET_IFNAME=ib1\n")
    values = _values(environ | {"NCCL_DEBUG": "WARN", "GLOO_SOCKET_IFNAME": "eth0"})
    assert (values["NCCL_DEBUG"], values["GLOO_SOCKET_IFNAME"]) == ("INFO", "ib1")


def test_file_that_the_user_names_for_deepspeed_is_read_instead(environ: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "work" / ".deepspeed_env").write_text("NCCL_DEBUG=INFO\n")
    (tmp_path / "cluster.env").write_text("NCCL_DEBUG=WARN\n")
    assert _values(environ | {"DS_ENV_FILE": str(tmp_path / "cluster.env")})["NCCL_DEBUG"] == "WARN"


@pytest.mark.parametrize("name", ["PYTHONPATH", "GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"])
def test_variable_that_a_shell_would_expand_is_refused(environ: dict[str, str], name: str) -> None:
    with pytest.raises(ConfigError, match=rf"environment variable {name} holds a character"):
        check_variables(environ | {name: "$(id)"})
    check_variables(environ | {"PS1": "$(id)"})


@pytest.mark.parametrize("name", ["NCCL_$(id)", "NCCL_`id`", "NCCL_A;id", "OMP_ X", "PYTHON\nid"])
def test_variable_whose_name_a_shell_would_run_is_refused(environ: dict[str, str], name: str) -> None:
    with pytest.raises(ConfigError, match=r"has a name that DeepSpeed's launcher would let the remote shell run"):
        check_variables(environ | {name: "1"})


def test_secrets_reach_neither_the_launcher_nor_the_machines() -> None:
    environ = {"MLFLOW_TRACKING_TOKEN": "s3cr3t", "MLFLOW_TRACKING_URI": "http://x", "HF_TOKEN": "t", "PATH": "/bin"}
    assert launcher_environment(environ) == {k: v for k, v in environ.items() if k != "MLFLOW_TRACKING_TOKEN"}
    plain = {"NCCL_DEBUG": "INFO", "MEGADEBERTA_KERNEL_CACHE": "/fast/kernels"}
    assert forwarded_variables({"TORCH_API_KEY": "s3cr3t"} | plain | environ) == plain
