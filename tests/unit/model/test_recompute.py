"""Activation checkpointing: the same numbers from less memory."""

import pytest
import torch

from megadeberta.config.objective import ObjectiveConfig
from megadeberta.layers.objectives import list_layers
from megadeberta.model.dropout import set_sites
from megadeberta.model.initialize import initialize
from megadeberta.model.whole import WholeModel
from tests.models import masked_batch, tiny_v2

CONFIG = tiny_v2(num_hidden_layers=4, dropout=0.3, initializer_range=0.3)
BATCH = masked_batch(CONFIG, samples=2, step=5)


def _run(objective: str, *, recompute: bool) -> tuple[float, dict[str, torch.Tensor], int]:
    """Loss, gradients, and the number of elements of all tensors that wait for the backward pass."""
    model = WholeModel(list_layers(CONFIG, ObjectiveConfig(name=objective)), recompute=recompute)
    initialize(model, seed=1, std=CONFIG.initializer_range)
    set_sites(model.named_modules(), seed=1)
    kept: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept[tensor.data_ptr()] = tensor.numel()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        terms, _ = model(**BATCH)
        loss = sum(total for name, (total, _) in terms.items() if name.endswith("_loss"))
    loss.backward()
    return loss.item(), {name: p.grad for name, p in model.named_parameters()}, sum(kept.values())


@pytest.mark.parametrize("objective", ["mlm", "rtd"])
def test_recomputed_layers_drop_the_same_and_keep_less(objective: str) -> None:
    loss, gradients, kept = _run(objective, recompute=False)
    loss_again, gradients_again, kept_less = _run(objective, recompute=True)
    assert loss_again == loss
    assert all(torch.equal(gradients_again[name], gradient) for name, gradient in gradients.items())
    assert kept_less < 0.7 * kept
