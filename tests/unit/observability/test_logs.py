"""What a rank logs, and what it keeps to itself."""

import io
import logging
import subprocess
import sys
import warnings
from collections.abc import Iterator

import pytest

from megadeberta.observability.logs import set_up_logging


@pytest.fixture(autouse=True)
def _restore_logging() -> Iterator[None]:
    root, deepspeed = logging.getLogger(), logging.getLogger("DeepSpeed")
    kept = root.handlers[:], root.level, deepspeed.filters[:]
    with warnings.catch_warnings():
        yield
    root.handlers[:], level, deepspeed.filters[:] = kept
    root.setLevel(level)
    logging.captureWarnings(False)


def _lines(rank: int, environ: dict[str, str] | None = None) -> io.StringIO:
    stream = io.StringIO()
    set_up_logging(rank, environ=environ or {}, stream=stream)
    return stream


def test_rank_zero_logs_plain_lines_and_marks_warnings() -> None:
    stream = _lines(0)
    logging.getLogger("megadeberta.train").info("step 1/2 loss %.3f", 6.5)
    logging.getLogger("megadeberta.train").warning("careful")
    logging.getLogger("megadeberta.train").error("broken")
    assert stream.getvalue() == "step 1/2 loss 6.500\nWARNING: careful\nERROR: broken\n"


def test_other_ranks_log_warnings_with_their_number() -> None:
    stream = _lines(3)
    logging.getLogger("megadeberta.train").info("step 1/2")
    logging.getLogger("megadeberta.train").warning("careful")
    assert stream.getvalue() == "[rank 3] WARNING: careful\n"


def test_second_set_up_replaces_the_first() -> None:
    first, second = _lines(0), _lines(0)
    logging.getLogger("x").info("once")
    assert (first.getvalue(), second.getvalue()) == ("", "once\n")


def test_third_parties_are_heard_on_errors_only() -> None:
    stream = _lines(0)
    for name in ("tensorboard", "matplotlib.font_manager", "DeepSpeed"):
        logging.getLogger(name).warning("noise")
        logging.getLogger(name).error("trouble")
    assert stream.getvalue() == "ERROR: trouble\n" * 3


def test_deepspeed_is_quiet_from_its_import_on_and_its_errors_are_taken_over() -> None:
    code = """
from megadeberta.observability.logs import set_up_logging
set_up_logging(0)
import logging, sys
logger = logging.getLogger("DeepSpeed")  # as deepspeed/utils/logging.py makes it
logger.setLevel(logging.WARNING)
logger.propagate = False
logger.addHandler(logging.StreamHandler(sys.stdout))
logger.warning("setting accelerator")
logger.error("real trouble")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("", "ERROR: real trouble\n")


def test_deprecations_of_third_parties_are_hidden_and_other_warnings_shown() -> None:
    stream = _lines(0)
    where = {"filename": "x.py", "lineno": 1}
    warnings.warn_explicit("old name", FutureWarning, module="torch.distributed.c10d_logger", **where)
    warnings.warn_explicit("torchlike", FutureWarning, module="torchlike", **where)
    warnings.warn_explicit("strange input", UserWarning, module="torch.nn", **where)
    text = stream.getvalue()
    assert "old name" not in text
    assert "torchlike" in text
    assert "strange input" in text


def test_values_of_secret_variables_never_reach_the_log() -> None:
    secrets = {"HF_TOKEN": "hf_canary_1", "AWS_SECRET_ACCESS_KEY": "aws_canary_2", "DB_PASSWORD": "pw_canary_3"}
    stream = _lines(0, {**secrets, "MY_KEY": "short", "HOME": "/home/visible"})
    logging.getLogger("DeepSpeed").error("cmd = export HF_TOKEN=hf_canary_1; python")
    logging.getLogger("x").info("%s", {"a": "aws_canary_2", "home": "/home/visible", "word": "short"})
    try:
        raise ValueError("pw_canary_3")
    except ValueError:
        logging.getLogger("x").exception("failed")
    text = stream.getvalue()
    assert "canary" not in text
    assert "/home/visible" in text
    assert "short" in text, "a value this short is a word of the language"


@pytest.mark.parametrize(
    ("environ", "coloured"),
    [({}, False), ({"FORCE_COLOR": "1"}, True), ({"FORCE_COLOR": "1", "NO_COLOR": "1"}, False)],
)
def test_colour_is_for_terminals_and_on_request(environ: dict[str, str], coloured: bool) -> None:
    stream = _lines(0, environ)
    logging.getLogger("x").warning("careful")
    assert ("\033[" in stream.getvalue()) is coloured
