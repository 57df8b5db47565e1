"""Signals ask; they never interrupt."""

import os
import signal
import subprocess
import sys
import textwrap
import time

import pytest

from megadeberta.engine.signals import STOP_SIGNALS, StopFlag


@pytest.mark.parametrize("number", STOP_SIGNALS)
def test_a_stop_signal_sets_the_flag_and_nothing_else(number: signal.Signals) -> None:
    with StopFlag() as stop:
        assert not stop.requested
        os.kill(os.getpid(), number)
        assert stop.requested


def test_the_former_handlers_are_back_afterwards() -> None:
    before = [signal.getsignal(number) for number in STOP_SIGNALS]
    with StopFlag():
        assert [signal.getsignal(number) for number in STOP_SIGNALS] != before
    assert [signal.getsignal(number) for number in STOP_SIGNALS] == before


def test_repeated_signals_do_not_cut_off_a_save() -> None:
    program = """
        import sys, time
        from megadeberta.engine.signals import StopFlag
        from megadeberta.errors import EXIT_PREEMPTED
        with StopFlag() as stop:
            print("ready", flush=True)
            while not stop.requested:
                time.sleep(0.01)
            print("saving", flush=True)
            end = time.monotonic() + 0.5
            while time.monotonic() < end:
                time.sleep(0.01)
            print("saved", flush=True)
            sys.exit(EXIT_PREEMPTED)
    """
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(program)], stdout=subprocess.PIPE, text=True, bufsize=1
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGTERM)
    assert process.stdout.readline() == "saving\n"
    for number in STOP_SIGNALS * 3:
        process.send_signal(number)
        time.sleep(0.02)
    assert process.stdout.read() == "saved\n"
    assert process.wait(10) == 75
