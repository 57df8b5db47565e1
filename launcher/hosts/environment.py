"""What of this shell's environment reaches the ranks of other machines, and by which file.

DeepSpeed 0.19.8 puts variables of a few prefixes and the lines of ``.deepspeed_env`` into the remote shell line
(launcher/runner.py:main), quoting them badly. ``DS_ENV_FILE`` names another file: ours holds the variables below, the
user's own lines after them, and nothing that a shell would expand or that may be a secret.
"""

import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

from megadeberta.config.redact import is_secret_name
from megadeberta.errors import ConfigError
from megadeberta.rank.environment import JOB_VARIABLE, STARTED_BY_VARIABLE

# DeepSpeed copies variables of these prefixes into the remote command line (EXPORT_ENVS and the accelerators').
EXPORTED_PREFIXES = ("MLFLOW", "PYTHON", "MV2", "UCX", "NCCL")
# We add these: what chooses device, network, threads and kernels of a rank. CUDA_VISIBLE_DEVICES is each machine's own
# matter.
FORWARDED_PREFIXES = (
    "DS_ACCELERATOR",
    "GLOO_",
    "MKL_",
    "NCCL_",
    "OMP_",
    "TORCH",
    "TRITON_",
    "FORCE_COLOR",
    "MEGADEBERTA_KERNEL_CACHE",
)
DEFAULT_FILE = ".deepspeed_env"
_PLAIN_NAME = r"[A-Za-z_][A-Za-z0-9_]*"
STARTED_BY = "megadeberta launch --hostfile"


def launcher_environment(environ: Mapping[str, str]) -> dict[str, str]:
    """``environ`` without the secrets that DeepSpeed would put on the remote command line and into its log."""
    return {
        name: value
        for name, value in environ.items()
        if not (name.startswith(EXPORTED_PREFIXES) and is_secret_name(name))
    }


def forwarded_variables(environ: Mapping[str, str]) -> dict[str, str]:
    """The variables that travel to every machine because they are set here."""
    return {
        name: value
        for name, value in environ.items()
        if name.startswith(FORWARDED_PREFIXES) and not is_secret_name(name)
    }


def check_variables(environ: Mapping[str, str]) -> None:
    """Refuse names and values that the remote shell would run or expand.

    Raises:
        ConfigError: naming the variable.
    """
    travelling = launcher_environment(environ)
    for name, value in travelling.items():
        if not name.startswith(EXPORTED_PREFIXES + FORWARDED_PREFIXES):
            continue
        if not re.fullmatch(_PLAIN_NAME, name):
            raise ConfigError(
                f"environment variable {name!r} has a name that DeepSpeed's launcher would let the remote shell run; "
                "unset it"
            )
        if re.search(r'[`$"\\\n]', value):
            raise ConfigError(
                f"environment variable {name} holds a character that DeepSpeed's launcher would let the remote shell "
                "expand; unset it or give it a plain value"
            )


def environment_lines(environ: Mapping[str, str], *, job: str) -> list[str]:
    """``NAME=VALUE`` lines for DeepSpeed: forwarded variables, the user's files (the later line wins), the job.

    Raises:
        ConfigError: a variable or a line of a user's file that a shell would expand, or that is no ``NAME=VALUE``.
    """
    check_variables(environ)
    values = {"TORCH_CPP_LOG_LEVEL": "ERROR", **forwarded_variables(environ)}
    for path in _user_files(environ):
        values.update(_read_file(path))
    values |= {JOB_VARIABLE: job, STARTED_BY_VARIABLE: STARTED_BY}
    return [f"{name}={value}" for name, value in values.items()]


def _user_files(environ: Mapping[str, str]) -> Iterator[Path]:
    """The files that DeepSpeed would read, in its order: the home folder's, then the working folder's."""
    for folder in dict.fromkeys((Path(environ.get("HOME") or Path.home()), Path(os.getcwd()))):
        path = folder / environ.get("DS_ENV_FILE", DEFAULT_FILE)
        if path.is_file():
            yield path


def _read_file(path: Path) -> dict[str, str]:
    values = {}
    for number, line in enumerate(path.read_text(encoding="utf-8", errors="replace").splitlines(), 1):
        if not re.fullmatch(rf"{_PLAIN_NAME}=.*", line):
            raise ConfigError(
                f"{path}:{number}: {line!r} is not NAME=VALUE, and DeepSpeed's launcher takes nothing else, not even "
                "blank lines or comments"
            )
        name, value = line.split("=", maxsplit=1)
        if re.search(r'[`"\\]|\$', value):
            raise ConfigError(
                f"{path}:{number}: the value of {name} holds '$', '`', '\"' or '\\', which the shells of "
                "all machines would run or expand; write the plain value"
            )
        values[name] = value
    return values
