"""TF32: torch's own flags are what the recipe says, on a GPU alone."""

from collections.abc import Iterator

import pytest
import torch

from megadeberta.config.training import TrainingConfig
from megadeberta.engine.fp32_products import set_tf32

CPU, GPU = torch.device("cpu"), torch.device("cuda")


def _flags() -> tuple[bool, bool, str]:
    """Of products and of convolutions, and what torch.compile reads."""
    backends = torch.backends
    return backends.cuda.matmul.allow_tf32, backends.cudnn.allow_tf32, torch.get_float32_matmul_precision()


@pytest.fixture(autouse=True)
def _restored() -> Iterator[None]:
    products, convolutions, _ = _flags()
    yield
    torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = products, convolutions


def test_a_gpu_multiplies_fp32_as_the_recipe_says() -> None:
    for allowed, name, precision in ((True, "TF32", "high"), (False, "fp32", "highest")):
        assert set_tf32(allowed, GPU) == f"fp32 products on the GPU: {name} (training.tf32)"
        assert _flags() == (allowed, allowed, precision)


def test_a_cpu_has_nothing_to_set() -> None:
    before = _flags()
    assert set_tf32(True, CPU) is None
    assert _flags() == before


def test_tf32_must_be_asked_for() -> None:
    assert TrainingConfig.model_fields["tf32"].default is False
