"""The probe that ends `make run`: what it finds in features that say the answer, and in features that do not."""

import importlib.util
import re
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

from megadeberta.convert.export import export_checkpoint
from tests.unit.convert.small_models import small_config, small_model, write_checkpoint

EXAMPLE = Path(__file__).parents[3] / "docs" / "examples" / "probe_with_transformers.py"


@pytest.fixture(scope="module")
def example() -> ModuleType:
    spec = importlib.util.spec_from_file_location("probe_with_transformers", EXAMPLE)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_features_that_say_the_kind_are_found_and_noise_is_chance(example: ModuleType) -> None:
    generator = torch.Generator().manual_seed(1)
    kinds = torch.arange(3000) % 6
    noise = torch.randn(3000, 32, generator=generator)
    telling = noise.clone()
    telling[torch.arange(3000), kinds] += 6.0
    assert example.probe(telling, kinds) > 0.95
    assert abs(example.probe(noise, kinds) - 1 / 6) < 0.06
    telling[:, 7] = 3.0  # a feature that never changes divides by nothing
    assert example.probe(telling, kinds) > 0.95


def test_one_line_with_both_numbers_for_an_export(
    example: ModuleType, tmp_path: Path, spm: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    config = small_config()
    checkpoint = write_checkpoint(tmp_path / "run", small_model(config), config, spm, step=1)
    export_checkpoint(checkpoint, tmp_path / "export")
    rows = [f"{row % 6},question {'abcdef'[row % 6] * 3} {row}" for row in range(90)]
    (tmp_path / "trec.csv").write_text("label-coarse,text\n" + "\n".join(rows) + "\n")
    monkeypatch.setattr(example, "TEST_ROWS", 30)
    monkeypatch.setattr(example, "TRAINING_ROWS", 60)
    monkeypatch.setattr(sys, "argv", ["probe", str(tmp_path / "export"), str(tmp_path / "trec.csv")])
    example.main()
    (line,) = capsys.readouterr().out.splitlines()
    shown = (
        r"linear probe on TREC-6, 30 questions of 6 kinds: accuracy of export [01]\.\d{3}, random weights [01]\.\d{3}"
    )
    assert re.fullmatch(shown, line), line
