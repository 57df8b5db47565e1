"""One small vocabulary for all conversion tests."""

from pathlib import Path

import pytest

from tests.unit.convert.odd_texts import ALL_TEXTS
from tests.unit.convert.small_models import train_vocabulary


@pytest.fixture(scope="session")
def spm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A unigram model with the project's special ids whose pieces cover all odd characters of the tests."""
    return train_vocabulary(tmp_path_factory.mktemp("vocabulary") / "spm.model", extra=ALL_TEXTS)
