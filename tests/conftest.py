"""Fixtures of the whole test suite."""

import logging
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.data_fixtures import prepared_corpus, train_vocabulary
from tests.unit.convert.odd_texts import ALL_TEXTS

# OpenMP's idle threads spin. On a busy machine they take the cores from those that work: a test of 6 s took 280 s.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

# Lines are as wide as the terminal or COLUMNS says, and tests look for whole ones; workers of pytest-xdist have 80.
os.environ.pop("COLUMNS", None)

# Without a GPU the Triton kernels run through Triton's interpreter. Triton reads this when it is imported, and several
# libraries import it, so it is set before any test module is.
if shutil.which("nvidia-smi") is None:
    os.environ.setdefault("TRITON_INTERPRET", "1")


@pytest.fixture(autouse=True)
def _log_of_its_own() -> Iterator[None]:
    """A command that a test runs in this process sends the log to a stream that is closed when the test is over."""
    root = logging.getLogger()
    before, level = list(root.handlers), root.level
    yield
    for handler in [handler for handler in root.handlers if handler not in before]:
        if not type(handler).__module__.startswith("_pytest."):
            root.removeHandler(handler)
    root.setLevel(level)


@pytest.fixture(scope="session")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a finished small set: ``train.*``, ``valid.*`` and ``tokenizer/spm.model`` (1000 pieces)."""
    return prepared_corpus(tmp_path_factory)


@pytest.fixture(scope="session")
def spm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A unigram model with the project's special ids whose pieces cover all odd characters of the tests."""
    return train_vocabulary(tmp_path_factory.mktemp("vocabulary") / "spm.model", extra=ALL_TEXTS)
