"""Activation checkpointing: the same numbers from less memory."""

import pytest
import torch

from megadeberta.config.model import ModelConfig
from megadeberta.config.objective import ObjectiveConfig
from megadeberta.layers.objectives import list_layers
from megadeberta.model.dropout import set_sites
from megadeberta.model.initialize import initialize
from megadeberta.model.whole import WholeModel

CONFIG = ModelConfig(
    vocab_size=32,
    hidden_size=16,
    num_hidden_layers=4,
    num_attention_heads=2,
    intermediate_size=32,
    position_buckets=4,
    max_position_embeddings=16,
    hidden_dropout_prob=0.3,
    attention_probs_dropout_prob=0.3,
    initializer_range=0.3,
    conv_kernel_size=3,
)
BATCH = {
    "input_ids": torch.randint(4, 30, (2, 12), generator=torch.Generator().manual_seed(0)),
    "attention_mask": torch.ones(2, 12, dtype=torch.int64),
    "masked_positions": torch.tensor([[1, 5], [2, 3]]),
    "masked_labels": torch.tensor([[7, 8], [9, 10]]),
    "sample_numbers": (5 << 32) + torch.arange(2),
}


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
