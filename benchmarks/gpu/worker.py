"""The process that measures: it reads one JSON request a line, and answers with one JSON line for each finding and one
for the end. A measurement that hangs, or that leaves the device unusable, costs this process and not the day.

    {"function": "gpu.op:measure", "parameters": {...}, "deadline": 60}
"""

import faulthandler
import gc
import importlib
import json
import math
import os
import sys
import time
import traceback
from typing import Any, TextIO

from gpu.finding import Measure


def main() -> None:
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # whatever a library prints goes to the log
    for line in sys.stdin:
        request = json.loads(line)
        print(f"--- {request['function']} {request['parameters']}", file=sys.stderr, flush=True)
        # Ends this process, even where it waits inside a driver, and leaves all stacks in the log.
        faulthandler.dump_traceback_later(request["deadline"], exit=True)
        answer(request, answers)
        faulthandler.cancel_dump_traceback_later()


def answer(request: dict[str, Any], answers: TextIO) -> None:
    """Measure, and write the findings and how it ended."""
    started = time.perf_counter()
    end: dict[str, Any] = {"end": "done", "healthy": True}
    try:
        for finding in load(request["function"])(request["parameters"]):
            send(answers, {"finding": vars(finding) | {"values": finite(finding.values)}})
    except (Exception, SystemExit) as error:  # no class is common to what a driver, a compiler or a library raises
        traceback.print_exc()
        end = {"end": "failed", "reason": describe(error)}
    if end["end"] == "failed":  # here the frames that held tensors are gone
        end["healthy"] = is_device_healthy()
    send(answers, end | {"seconds": round(time.perf_counter() - started, 3)})


def load(place: str) -> Measure:
    module, _, name = place.partition(":")
    return getattr(importlib.import_module(module), name)


def send(answers: TextIO, content: dict[str, Any]) -> None:
    answers.write(json.dumps(content, allow_nan=False, default=str) + "\n")
    answers.flush()


def finite(values: dict[str, Any]) -> dict[str, Any]:
    """Without the numbers that are none, such as the peak of GPU memory on a CPU."""
    return {key: value for key, value in values.items() if not (isinstance(value, float) and not math.isfinite(value))}


def describe(error: BaseException) -> str:
    """One line."""
    first = (str(error).strip().splitlines() or [""])[0][:300]
    kind = type(error).__name__
    return "out of memory: " + first if kind == "OutOfMemoryError" else f"{kind}: {first}"


def is_device_healthy() -> bool:
    """Whether another measurement may follow here: an error on a GPU can make every later call fail."""
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_initialized():
        return True
    try:
        gc.collect()
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
        return bool(torch.ones(2, device="cuda").sum().item() == 2)
    except Exception:
        traceback.print_exc()
        return False


if __name__ == "__main__":
    main()
