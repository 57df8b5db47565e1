"""docs/examples/fast_attention.py runs on a folder and finds both attentions equal."""

import importlib.util
import re
from pathlib import Path

import pytest
import torch

from tests.unit.hf.small_models import build

EXAMPLE = Path(__file__).parents[3] / "docs" / "examples" / "fast_attention.py"


@pytest.mark.parametrize("case", ["v3 with positions at the input", "v1, c2p alone"])
def test_the_example_finds_both_equal(case: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    spec = importlib.util.spec_from_file_location("fast_attention", EXAMPLE)
    example = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(example)
    build(case, torch.float32).save_pretrained(tmp_path)
    example.main([str(tmp_path), "--length", "12", "--batch-size", "3"])
    output = capsys.readouterr().out
    differences = [float(number) for number in re.findall(r"relative difference (\S+)", output)]
    assert len(differences) == 2 and max(differences) < 1e-5
    assert output.count("s eager") == 2
