"""The optimizers, what each keeps for a parameter, and the groups of parameters: AdamW with the no-decay set.

A new optimizer is its settings in ``config/training.py``, its class and its line of ``STATE_FORMATS`` here, and a test.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from deepspeed.ops.adam import DeepSpeedCPUAdam
from torch import Tensor, nn

from megadeberta.config.objective import DISCRIMINATOR, part_of
from megadeberta.config.training import OptimizerConfig
from megadeberta.errors import ConfigError

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
                        "step": torch.tensor(STEPS_WITHOUT_CORRECTION, dtype=torch.float32, device=parameter.device),
                        "exp_avg": torch.zeros_like(parameter),
                        "exp_avg_sq": torch.zeros_like(parameter),
                    }
        return super().step(closure)


@dataclass(frozen=True)
class StateFormat:
    """What an optimizer keeps for a parameter besides its weight: what a checkpoint holds, and how it counts."""

    moments: tuple[str, ...]
    """Tensors as large as the parameter: their names in the optimizer's state and in checkpoints."""
    count_at_start: float = 0.0
    """What ``step`` of its state says before the first update."""
    counts_in_tensor: bool = True
    """Whether ``step`` is a tensor on the parameter's device, or a Python integer."""

    def updates(self, state: Mapping[str, Any]) -> float:
        """How often the parameter of this state has been updated."""
        return float(state["step"]) - self.count_at_start

    def step(self, updates: float, device: torch.device) -> Tensor | int:
        """``step`` of a state after this many updates."""
        count = updates + self.count_at_start
        return torch.tensor(count, dtype=torch.float32, device=device) if self.counts_in_tensor else int(count)


_MEANS = ("exp_avg", "exp_avg_sq")  # of the gradient and of its square, as torch and DeepSpeed call Adam's
STATE_FORMATS: dict[type[torch.optim.Optimizer], StateFormat] = {
    torch.optim.AdamW: StateFormat(_MEANS),
    AdamWithoutBiasCorrection: StateFormat(_MEANS, count_at_start=STEPS_WITHOUT_CORRECTION),
    DeepSpeedCPUAdam: StateFormat(_MEANS, counts_in_tensor=False),
}
"""By exact class, as DeepSpeed's ZeRO knows optimizers too. Checkpoints are read and written by it."""


def state_format(optimizer: torch.optim.Optimizer) -> StateFormat:
    """What ``optimizer`` keeps.

    Raises:
        ConfigError: ``STATE_FORMATS`` does not say.
    """
    if type(optimizer) not in STATE_FORMATS:
        raise ConfigError(
            f"what {type(optimizer).__name__} keeps for a parameter is not known, so checkpoints cannot hold it; add "
            "it to STATE_FORMATS of megadeberta/engine/optimizer.py"
        )
    return STATE_FORMATS[type(optimizer)]


def is_decayed(name: str) -> bool:
    """Weight decay applies to everything but biases and LayerNorm weights; so the word, position and relative tables
    are decayed."""
    return not name.endswith((".bias", "layer_norm.weight"))


def parameter_groups(
    named: Iterable[tuple[str, nn.Parameter]], *, weight_decay: float, part_lr: Mapping[str, float] | None = None
) -> list[dict[str, Any]]:
    """For every part of the model two groups, decayed and not, in the order of the model.

    A group's ``lr_scale`` is its learning rate over that of the recipe; ``active`` false leaves the group as it is.

    Args:
        part_lr: learning rate of a part over the recipe's; 1 where a part is not named.
    """
    groups: dict[tuple[str, bool], list[nn.Parameter]] = {}
    for name, parameter in named:
        part = part_of(name)
        for decayed in (True, False):
            groups.setdefault((part, decayed), [])
        groups[part, is_decayed(name)].append(parameter)
    return [
        {
            "params": parameters,
            "weight_decay": weight_decay if decayed else 0.0,
            "part": part,
            "lr_scale": (part_lr or {}).get(part, 1.0),
            "active": True,
        }
        for (part, decayed), parameters in groups.items()
        if parameters  # a pipeline stage may hold nothing of a part but a table
    ]


def build_optimizer(model: nn.Module, config: OptimizerConfig, *, offloaded: bool) -> torch.optim.Optimizer:
    """The optimizer that DeepSpeed wraps. ``offloaded``, to the host or to files, it must be DeepSpeed's CPU kernel."""
    part_lr = {DISCRIMINATOR: (config.discriminator_lr or config.lr) / config.lr}
    groups = parameter_groups(model.named_parameters(), weight_decay=config.weight_decay, part_lr=part_lr)
    common: dict[str, Any] = {"lr": config.lr, "betas": (config.beta1, config.beta2), "eps": config.eps}
    if offloaded:  # the first one compiles a C++ kernel
        optimizer = DeepSpeedCPUAdam(groups, adamw_mode=True, bias_correction=config.bias_correction, **common)
    else:
        kind = torch.optim.AdamW if config.bias_correction else AdamWithoutBiasCorrection
        optimizer = kind(groups, fused=True, **common)
    _step_active_groups_only(optimizer)
    return optimizer


def _step_active_groups_only(optimizer: torch.optim.Optimizer) -> None:
    """Keep groups that are not active out of every step: their moments and step counts stay too.

    Hooks and not a subclass, because DeepSpeed's ZeRO knows optimizers by their exact class.
    """
    stashed: list[dict[str, Any]] = []

    def hide(inner: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        stashed[:] = inner.param_groups
        inner.param_groups = [group for group in stashed if group["active"]]

    def restore(inner: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        inner.param_groups = list(stashed)

    optimizer.register_step_pre_hook(hide)
    optimizer.register_step_post_hook(restore)
