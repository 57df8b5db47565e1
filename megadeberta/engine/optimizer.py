"""AdamW with the no-decay set, and Adam without bias correction for Microsoft's recipes."""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import nn

from megadeberta.config.deepspeed_block import offloads_optimizer
from megadeberta.config.training import OptimizerConfig

# Adam's correction 1 - beta ** t is exactly 1 in float64 for every beta < 0.9999 at this many steps.
STEPS_WITHOUT_CORRECTION = 1_000_000.0


class AdamWithoutBiasCorrection(torch.optim.AdamW):
    """torch's AdamW whose step count starts so high that both bias corrections are 1.

    ``p -= lr * (m / (sqrt(v) + eps) + wd * p)``, as microsoft/DeBERTa ``optims/xadam.py``.
    """

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None and not self.state[parameter]:
                    self.state[parameter] = {
                        "step": torch.tensor(STEPS_WITHOUT_CORRECTION, dtype=torch.float32),
                        "exp_avg": torch.zeros_like(parameter),
                        "exp_avg_sq": torch.zeros_like(parameter),
                    }
        return super().step(closure)


def is_decayed(name: str) -> bool:
    """Weight decay applies to everything but biases and LayerNorm weights; so the word, position and relative tables
    are decayed."""
    return not name.endswith((".bias", "layer_norm.weight"))


def parameter_groups(named: Iterable[tuple[str, nn.Parameter]], *, weight_decay: float) -> list[dict[str, Any]]:
    """Two groups, decayed and not, in the order of the model."""
    decayed: list[nn.Parameter] = []
    plain: list[nn.Parameter] = []
    for name, parameter in named:
        (decayed if is_decayed(name) else plain).append(parameter)
    return [{"params": decayed, "weight_decay": weight_decay}, {"params": plain, "weight_decay": 0.0}]


def build_optimizer(
    model: nn.Module, config: OptimizerConfig, *, deepspeed_block: Mapping[str, Any]
) -> torch.optim.Optimizer:
    """The optimizer that DeepSpeed wraps. With an offloaded optimizer it must be DeepSpeed's own CPU kernel."""
    groups = parameter_groups(model.named_parameters(), weight_decay=config.weight_decay)
    common = {"lr": config.lr, "betas": (config.beta1, config.beta2), "eps": config.eps}
    if offloads_optimizer(deepspeed_block):
        # Imported here because it compiles a C++ kernel the first time it is used.
        from deepspeed.ops.adam import DeepSpeedCPUAdam

        return DeepSpeedCPUAdam(groups, adamw_mode=True, bias_correction=config.bias_correction, **common)
    kind = torch.optim.AdamW if config.bias_correction else AdamWithoutBiasCorrection
    return kind(groups, fused=True, **common)
