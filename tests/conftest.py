"""Fixtures of the whole test suite."""

from pathlib import Path

import pytest

from tests.data_fixtures import prepared_corpus


@pytest.fixture(scope="session")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a finished small set: ``train.*``, ``valid.*`` and ``tokenizer/spm.model`` (1000 pieces)."""
    return prepared_corpus(tmp_path_factory)
