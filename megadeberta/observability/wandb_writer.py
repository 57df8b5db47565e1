"""Weights & Biases: online where a key is known, else in OUTPUT/wandb, for `wandb sync` later."""

import netrc
import os
import shutil
from collections.abc import Mapping
from pathlib import Path

from megadeberta.observability.tracker import TrackedRun

_HOST = "api.wandb.ai"
_INIT_SECONDS = 60


class WandbWriter:
    """One run over all starts. Offline its files are written anew at a resume: a killed process leaves part of them."""

    def __init__(self, run: TrackedRun) -> None:
        import wandb

        identity = run.identity("wandb")
        offline = _is_offline()
        if offline:
            _remove_earlier(run.folder / "wandb", identity)
        self._run = wandb.init(
            project=run.project,
            id=identity,
            name=run.name,
            dir=str(run.folder),
            config=dict(run.settings),
            mode="offline" if offline else "online",
            resume=None if offline else "allow",
            settings=wandb.Settings(silent=True, console="off", init_timeout=_INIT_SECONDS),
        )
        last = 0 if offline or not self._run.resumed else max(0, self._run.step - 1)
        self.last: Mapping[str, int] = {"train": last, "valid": last}

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """One row; those of one step become one."""
        self._run.log(dict(values), step=step)

    def flush(self) -> None:
        """Another process sends or writes what was logged."""

    def close(self) -> None:
        """Wait until that is done: offline, ``finish`` alone returns before the last rows are in the file."""
        import wandb

        self._run.finish()
        wandb.teardown()


def _remove_earlier(folder: Path, identity: str) -> None:
    """Renamed first: W&B's own process outlives a killed run for a moment, and may write into its folder meanwhile."""
    for old in folder.glob(f"offline-run-*-{identity}"):
        replaced = old.rename(old.with_name(f"replaced-{old.name}"))
        shutil.rmtree(replaced, ignore_errors=True)


def _is_offline() -> bool:
    """As WANDB_MODE says, else where no key is known: wandb would ask for one, and a rank has no keyboard."""
    mode = os.environ.get("WANDB_MODE")
    if mode:
        return mode != "online"
    return not os.environ.get("WANDB_API_KEY") and not _has_login(Path(os.environ.get("NETRC", "~/.netrc")))


def _has_login(path: Path) -> bool:
    try:
        return _HOST in netrc.netrc(path.expanduser()).hosts
    except (OSError, netrc.NetrcParseError):
        return False
