"""Bytes that a real model keeps for its backward pass, counted through autograd's hooks."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from megadeberta.config.model import ModelConfig
from megadeberta.config.objective import ObjectiveConfig
from megadeberta.model.attention_backend import select_attention
from megadeberta.model.carry import Carry
from megadeberta.model.layer import EncoderLayer
from megadeberta.model.mask_decoder import EnhancedMaskDecoder
from megadeberta.model.whole import WholeModel, build_specs
from megadeberta.ops.disentangled_attention import Backend

BATCH, LENGTH = 4, 96


def saved_bytes(
    model: ModelConfig,
    objective: ObjectiveConfig,
    backend: Backend,
    *,
    targets: int,
    recompute: bool = False,
    shard: Callable[[WholeModel], None] = lambda _: None,
) -> int:
    """Of one training pass in fp32 with all targets filled; each storage counts once, parameters not at all."""
    torch.manual_seed(0)
    whole = WholeModel(build_specs(model, objective), recompute=recompute)
    for parameter in whole.parameters():
        nn.init.normal_(parameter, std=0.02)
    shard(whole)
    select_attention(whole, backend, torch.device("cpu"))
    whole.train()
    parameters = {parameter.untyped_storage().data_ptr() for parameter in whole.parameters()}
    kept: dict[int, Tensor] = {}

    def note(tensor: Tensor) -> Tensor:
        address = tensor.untyped_storage().data_ptr()
        if address not in parameters:
            kept[address] = tensor  # held, so that no later tensor gets the same address
        return tensor

    def keep_input(inputs: tuple[Carry]) -> None:
        note(inputs[0].hidden)

    if recompute:  # a checkpoint holds its input without telling autograd
        for module in whole.modules():
            if isinstance(module, EncoderLayer | EnhancedMaskDecoder):
                module.register_forward_pre_hook(lambda _, inputs: keep_input(inputs))
    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        terms, _ = whole(**_batch(model, targets))
        sum(total for name, (total, _) in terms.items() if name.endswith("_loss"))
    return sum(tensor.untyped_storage().nbytes() for tensor in kept.values())


def _batch(model: ModelConfig, targets: int) -> dict[str, Tensor]:
    positions = torch.stack([torch.randperm(LENGTH)[:targets].sort().values for _ in range(BATCH)])
    return {
        "input_ids": torch.randint(5, model.vocab_size, (BATCH, LENGTH)),
        "attention_mask": torch.ones(BATCH, LENGTH, dtype=torch.int64),
        "masked_positions": positions,
        "masked_labels": torch.randint(5, model.vocab_size, (BATCH, targets)),
        "sample_numbers": torch.arange(BATCH),
    }
