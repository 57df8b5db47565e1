"""A training run of seconds that is broken from outside while its log is read, line by line with the time."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import psutil
from rich.console import Console

from megadeberta.data_prep.options import PrepOptions, VocabularyOptions
from megadeberta.data_prep.prepare import prepare
from megadeberta.errors import EXIT_PREEMPTED
from tests.e2e.tiny_run import Losses, last_step, losses, write_recipe
from tests.faults.poison import FAULT_SIGNAL, VARIABLE

ROOT = Path(__file__).parents[2]
PATIENT_SECONDS = 900.0
POLL_SECONDS = 0.05
_UNDISTURBED_SECONDS = 3600.0


class Bench:
    """The folder of a campaign: one prepared corpus, and the losses of undisturbed runs by their recipe."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self._undisturbed: dict[str, Losses] = {}

    @property
    def corpus(self) -> Path:
        """Token files and vocabulary, made once."""
        output = self.folder / "corpus"
        if not (output / "train.json").exists():
            text = ROOT / "tests" / "data" / "sotu.txt"
            options = PrepOptions(corpora=(text,), output=output, vocabulary=VocabularyOptions(size=1000))
            prepare(options, console=Console(quiet=True), plot=lambda folder, lengths: None)
        return output

    def start(self, name: str, *arguments: str, **changes: object) -> "FaultRun":
        """``megadeberta launch`` on two ranks in a new folder; ``changes`` as for ``write_recipe``."""
        folder = self.folder / f"{name}-{time.time_ns()}"
        folder.mkdir()
        return FaultRun(
            folder, write_recipe(folder, self.corpus, plugins=["tests.faults.poison"], **changes), arguments
        )

    def undisturbed(self, **changes: object) -> Losses:
        """The losses of a run to which nothing happens."""
        key = json.dumps(changes, sort_keys=True)
        if key not in self._undisturbed:
            run = self.start("undisturbed", **changes)
            code = run.wait(_UNDISTURBED_SECONDS)
            if code != 0:
                raise RuntimeError(f"the undisturbed run ended with {code}:\n{run.tail()}")
            self._undisturbed[key] = losses(run.output)
        return self._undisturbed[key]


class FaultRun:
    """One launcher, its ranks and its log."""

    def __init__(self, folder: Path, recipe: Path, arguments: tuple[str, ...] = ()) -> None:
        self.folder, self.output = folder, folder / "run"
        self._fault = folder / "fault"
        self._command = [sys.executable, "-m", "megadeberta", "launch", str(recipe), "--ranks", "2", *arguments]
        self.lines: list[tuple[float, str]] = []
        """Time and text of each line of the log."""
        self.begin()

    def begin(self) -> None:
        """Start the command; again after an end, it resumes."""
        environ = {**os.environ, "DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1", VARIABLE: str(self._fault)}
        environ["PYTHONPATH"] = str(ROOT)
        self.process = subprocess.Popen(
            self._command, env=environ, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            start_new_session=True,
            # A campaign in the background of a shell ignores Ctrl-C, and so would the run until it listens.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )  # fmt: skip
        self._reader = threading.Thread(target=self._read, args=(self.process,), daemon=True)
        self._reader.start()

    def _read(self, process: subprocess.Popen[str]) -> None:
        assert process.stdout is not None
        for line in process.stdout:
            self.lines.append((time.monotonic(), line.rstrip("\n")))

    @property
    def step(self) -> int:
        """The last step in the log of this run."""
        return last_step(self.output)

    def ranks(self) -> list[psutil.Process]:
        """The processes of the ranks, by rank; fewer while they start or end."""
        found = []
        for child in psutil.Process(self.process.pid).children():
            try:
                if "train" in child.cmdline():
                    found.append((int(child.environ()["RANK"]), child))
            except (psutil.Error, KeyError):
                continue
        return [child for _, child in sorted(found, key=lambda pair: pair[0])]

    def break_rank(self, rank: int, fault: str) -> psutil.Process:
        """Let a rank do what ``poison.py`` knows by this name."""
        self._fault.write_text(fault)
        process = self.ranks()[rank]
        process.send_signal(FAULT_SIGNAL)
        return process

    def wait_until(self, condition: Callable[[], bool], what: str, *, seconds: float = PATIENT_SECONDS) -> float:
        """Poll; how long it took.

        Raises:
            RuntimeError: the time is over, or the launcher has ended before.
        """
        started = time.monotonic()
        while not condition():
            if time.monotonic() - started > seconds or (self.process.poll() is not None and not condition()):
                raise RuntimeError(f"{what} did not come within {seconds:.0f} s:\n{self.tail()}")
            time.sleep(POLL_SECONDS)
        return time.monotonic() - started

    def wait_for_step(self, step: int, *, seconds: float = PATIENT_SECONDS) -> float:
        """Until the log has this step."""
        return self.wait_until(lambda: self.step >= step, f"step {step}", seconds=seconds)

    def stop(self) -> None:
        """SIGTERM to the launcher, as a scheduler sends it.

        Raises:
            RuntimeError: it does not end with the exit code of a run that has saved.
        """
        self.process.send_signal(signal.SIGTERM)
        if (code := self.wait(60)) != EXIT_PREEMPTED:
            raise RuntimeError(f"SIGTERM ended the run with {code}:\n{self.tail()}")

    def wait_for_line(self, text: str, *, seconds: float = PATIENT_SECONDS, after: int = 0) -> tuple[float, str]:
        """Time and text of the first line with ``text`` among those from number ``after`` on."""

        def found() -> list[tuple[float, str]]:
            return [(at, line) for at, line in list(self.lines)[after:] if text in line]

        self.wait_until(lambda: bool(found()), repr(text), seconds=seconds)
        return found()[0]

    def wait(self, seconds: float = PATIENT_SECONDS) -> int:
        """The exit code.

        Raises:
            RuntimeError: it does not end in time.
        """
        try:
            code = self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            self.end()
            raise RuntimeError(f"it did not end within {seconds:.0f} s:\n{self.tail()}") from None
        self._reader.join(10)
        return code

    def end(self) -> None:
        """Whatever it does: launcher and ranks are gone after this."""
        if self.process.poll() is None:
            for process in [*self.ranks(), psutil.Process(self.process.pid)]:
                try:
                    process.send_signal(signal.SIGKILL)
                except psutil.Error:
                    continue
            self.process.wait()

    def tail(self, lines: int = 15) -> str:
        """The end of the log."""
        return "\n".join(line for _, line in self.lines[-lines:])

    def text(self) -> str:
        """The whole log."""
        return "\n".join(line for _, line in self.lines)
