"""A tiny model to fine-tune."""

from pathlib import Path

import pytest

from tests.unit.finetune.small_sets import exported_model


@pytest.fixture(scope="session")
def tiny_export(tmp_path_factory: pytest.TempPathFactory, spm: Path) -> Path:
    """Folder of an encoder of three layers for transformers."""
    return exported_model(tmp_path_factory.mktemp("tiny"), spm)
