"""Runs a plan: in one worker process for as long as it answers and its device works, in a new one after that.

A measurement has a deadline, and the day has a budget of time: what does not fit any more is skipped by name.
"""

import importlib.util
import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, TextIO

from gpu.plan import Measurement
from gpu.results import FAILED, MEASURED, SKIPPED, Record, Results

BENCHMARKS = Path(__file__).resolve().parents[1]
GRACE_SECONDS = 5.0
"""After its deadline a worker ends itself and leaves its stacks in the log; this much later it is killed."""
DEADLINE_FACTOR, SHORTEST_DEADLINE = 2.5, 90.0
"""A measurement may take this many times as long as expected before it counts as hanging."""


class WorkerEndedError(Exception):
    """The worker process is gone; the message says why."""


class Worker:
    """A process of ``gpu.worker``, in a session of its own so that what it started ends with it."""

    def __init__(self, log: TextIO) -> None:
        paths = [str(BENCHMARKS), str(BENCHMARKS.parent), os.environ.get("PYTHONPATH", "")]
        environ = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in paths if path)}
        self._process = subprocess.Popen(
            [sys.executable, "-m", "gpu.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            env=environ,
            start_new_session=True,
        )
        self._lines: queue.Queue[str | None] = queue.Queue()
        threading.Thread(target=self._read, daemon=True).start()

    def measure(self, measurement: Measurement, *, deadline: float) -> Iterator[dict[str, Any]]:
        """The worker's answers, the last one with ``end``.

        Raises:
            WorkerEndedError: it ended, or did not answer in time.
        """
        request = {"function": measurement.function, "parameters": measurement.parameters, "deadline": deadline}
        until = time.monotonic() + deadline + GRACE_SECONDS
        late = f"took longer than {deadline:.0f} s; its stacks are in worker.log"
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
        while True:
            try:
                line = self._lines.get(timeout=max(0.0, until - time.monotonic()))
            except queue.Empty:
                raise WorkerEndedError(late) from None
            if line is None:
                was_late = time.monotonic() >= until - GRACE_SECONDS  # the worker's own timer started after ours
                code = self._process.wait()
                raise WorkerEndedError(late if was_late else f"the process ended with code {code}; see worker.log")
            answer = json.loads(line)
            yield answer
            if "end" in answer:
                return

    def close(self) -> None:
        """End it, and everything it started."""
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._lines.put(line)
        self._lines.put(None)


class Day:
    """One run of a plan."""

    def __init__(self, results: Results, log: TextIO, *, seconds: float, after_each: Callable[[], None]) -> None:
        """``after_each`` is called when a measurement has ended, however it did."""
        self._results, self._log, self._after_each = results, log, after_each
        self._end = time.monotonic() + seconds
        self._worker: Worker | None = None

    def run(self, plan: Sequence[Measurement]) -> None:
        """Measure everything that can be; the rest is recorded with its reason, also when this is interrupted."""
        waiting = list(plan)
        try:
            while waiting:
                measurement = waiting.pop(0)
                reason = measurement.excluded or missing(measurement.needs) or self._too_late(measurement)
                if reason:
                    self._record(measurement, SKIPPED, reason=reason)
                else:
                    self._measure(measurement)
                self._after_each()
        finally:
            self._close_worker()
            for measurement in waiting:
                self._record(measurement, SKIPPED, reason="the day was stopped before it")
            self._after_each()

    def _too_late(self, measurement: Measurement) -> str:
        left = self._end - time.monotonic()
        if left >= measurement.seconds:
            return ""
        return f"no time left: it needs about {measurement.seconds:.0f} s, and {max(0.0, left):.0f} s are left"

    def _measure(self, measurement: Measurement) -> None:
        started = time.monotonic()
        longest = max(SHORTEST_DEADLINE, DEADLINE_FACTOR * measurement.seconds)
        try:
            self._worker = self._worker or Worker(self._log)
            for answer in self._worker.measure(measurement, deadline=min(longest, self._end - started)):
                seconds = time.monotonic() - started
                if "finding" in answer:
                    self._record(measurement, MEASURED, seconds=seconds, **answer["finding"])
                elif answer["end"] == "failed":
                    self._record(measurement, FAILED, seconds=seconds, reason=answer["reason"])
                    if not answer["healthy"]:
                        self._close_worker()
        except WorkerEndedError as error:
            self._record(measurement, FAILED, seconds=time.monotonic() - started, reason=str(error))
            self._close_worker()
        except BaseException:
            self._record(measurement, FAILED, seconds=time.monotonic() - started, reason="the day was stopped in it")
            raise

    def _record(
        self,
        measurement: Measurement,
        status: str,
        *,
        values: dict[str, Any] | None = None,
        about: str = "",
        kind: str = "",
        parameters: dict[str, Any] | None = None,
        reason: str = "",
        seconds: float = 0.0,
    ) -> None:
        name = f"{measurement.name}: {about}" if about else measurement.name
        known = measurement.parameters | (parameters or {})
        kind = kind or measurement.kind
        record = Record(name, kind, status, known, values or {}, reason, round(seconds, 2))
        self._results.add(record)
        shown = {key: value for key, value in record.values.items() if not isinstance(value, list | dict)}
        print(f"{status:8s} {name}  {reason or json.dumps(shown)}", flush=True)

    def _close_worker(self) -> None:
        if self._worker is not None:
            self._worker.close()
            self._worker = None


def missing(modules: Sequence[str]) -> str:
    """Which of the modules are not installed, for the user; empty if all are."""
    absent = [module for module in modules if importlib.util.find_spec(module) is None]
    return f"{' and '.join(absent)} not installed" if absent else ""
