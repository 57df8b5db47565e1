"""The picture of a run is drawn beside it: the caller does not wait, and the process ends with the caller."""

import subprocess
import sys
import time
from pathlib import Path

from megadeberta.observability.curve import Curve, CurveDrawer
from megadeberta.observability.metrics import CURVE_FILE, METRICS_FILE, MetricsFile

_DRAW = """
import sys, threading
from megadeberta.observability.curve import Curve, CurveDrawer
drawer = CurveDrawer(Curve(sys.argv[1], "quickstart", ["mlm_loss"], 6.45))
drawer.draw_at_exit()
assert "matplotlib" not in sys.modules
"""


def _write(folder: Path, *steps: int) -> None:
    with MetricsFile(folder / METRICS_FILE) as file:
        for step in steps:
            file.write(step, {"loss": 6 - step / 100, "mlm_loss": 6 - step / 100})


def test_the_last_picture_is_there_when_the_process_has_ended(tmp_path: Path) -> None:
    _write(tmp_path, *range(1, 20))
    done = subprocess.run(
        [sys.executable, "-c", _DRAW, tmp_path], check=True, timeout=120, capture_output=True, text=True
    )
    assert done.stderr == "", "what the drawing process says comes out of the rank"
    assert (tmp_path / CURVE_FILE).stat().st_size > 5_000


def test_the_caller_does_not_wait_and_one_process_draws_at_a_time(tmp_path: Path) -> None:
    _write(tmp_path, 1, 2)
    (tmp_path / "slow_plugin.py").write_text("import time\ntime.sleep(600)\n")
    sys.path.append(str(tmp_path))
    drawer = CurveDrawer(Curve(str(tmp_path), "quickstart", ["mlm_loss"], None, ["slow_plugin"]))
    try:
        started = time.monotonic()
        drawer.draw()
        drawer.draw()
        assert time.monotonic() - started < 30  # of 600
        process = drawer._process
        assert process is not None and process.poll() is None
        process.stdin.close()  # as the end of the rank, kill -9 included, does
        assert process.wait(60) == 0
    finally:
        sys.path.remove(str(tmp_path))
    assert not (tmp_path / CURVE_FILE).exists()
