"""A recipe's plugin that lets a test break a rank from outside: on ``FAULT_SIGNAL`` it does what a file says.

The file is named by ``MEGADEBERTA_FAULT``; its first word is one of ``FAULTS``.
"""

import os
import re
import signal
import sys
import time
from pathlib import Path

FAULT_SIGNAL = signal.SIGRTMIN + 3
VARIABLE = "MEGADEBERTA_FAULT"


def _sleep() -> None:
    time.sleep(3600)


def _hold_the_interpreter() -> None:
    re.match(r"(a+)+$", "a" * 64 + "b")  # exponential, and never gives the interpreter to another thread


def _raise() -> None:
    raise RuntimeError("injected: uncorrectable ECC error encountered")


def _leave() -> None:
    os._exit(0)


FAULTS = {"sleep": _sleep, "gil": _hold_the_interpreter, "raise": _raise, "exit0": _leave}


def _break(number: int, frame: object) -> None:
    FAULTS[Path(os.environ[VARIABLE]).read_text().split()[0]]()


if VARIABLE in os.environ and "train" in sys.argv:
    signal.signal(FAULT_SIGNAL, _break)
