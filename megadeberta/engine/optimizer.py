"""The optimizers, what each keeps for a parameter, and the groups of parameters, with the no-decay set.

AdamW is here; what looks at whole tensors is in ``library_optimizer.py``.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from deepspeed.ops.adam import DeepSpeedCPUAdam
from torch import Tensor, nn

from megadeberta.config.objective import DISCRIMINATOR, part_of
from megadeberta.config.training import RULES, OptimizerConfig
from megadeberta.engine.library_optimizer import LibraryOptimizer
from megadeberta.errors import ConfigError
from megadeberta.layers.optimizer_rules import rule_of

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


_MEANS = RULES["adamw"].moments
STATE_FORMATS: dict[type[torch.optim.Optimizer], StateFormat] = {
    torch.optim.AdamW: StateFormat(_MEANS),
    AdamWithoutBiasCorrection: StateFormat(_MEANS, count_at_start=STEPS_WITHOUT_CORRECTION),
    DeepSpeedCPUAdam: StateFormat(_MEANS, counts_in_tensor=False),
}
"""By exact class, as DeepSpeed's ZeRO knows optimizers too. Checkpoints are read and written by it."""


def state_format(optimizer: torch.optim.Optimizer, tensor: Tensor) -> StateFormat:
    """What ``optimizer`` keeps for ``tensor``, one of those that it updates.

    Raises:
        ConfigError: ``STATE_FORMATS`` does not say.
    """
    if isinstance(optimizer, LibraryOptimizer):
        rule = RULES[optimizer.rule_of(tensor)]
        return StateFormat(rule.moments, counts_in_tensor=rule.is_elementwise)
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


GroupKey = tuple[str, str, bool]
"""Of a parameter group: part of the model, rule of the update, whether it is decayed."""


def group_key(name: str, config: OptimizerConfig) -> GroupKey:
    """The group of the parameter of this global name."""
    return part_of(name), rule_of(name, config.name), is_decayed(name)


def parameter_groups(named: Iterable[tuple[str, nn.Parameter]], config: OptimizerConfig) -> list[dict[str, Any]]:
    """For every part of the model two groups, decayed and not, in the order of the model; with Muon a third one.

    A group's ``lr_scale`` is its learning rate over that of the recipe; ``active`` false leaves the group as it is.
    """
    groups: dict[GroupKey, list[nn.Parameter]] = {}
    for name, parameter in named:
        part, rule, decayed = group_key(name, config)
        for each in (True, False):
            groups.setdefault((part, rule, each), [])
        groups[part, rule, decayed].append(parameter)
    return [
        {
            "params": parameters,
            "weight_decay": config.weight_decay if decayed else 0.0,
            "part": part,
            "lr_scale": _lr_scale(part, rule, config),
            "active": True,
            "rule": rule,
            "key": (part, rule, decayed),
        }
        for (part, rule, decayed), parameters in groups.items()
        if parameters  # a pipeline stage may hold nothing of a part but a table
    ]


def _lr_scale(part: str, rule: str, config: OptimizerConfig) -> float:
    """Learning rate of a group over the recipe's."""
    scale = (config.discriminator_lr or config.lr) / config.lr if part == DISCRIMINATOR else 1.0
    return scale * (config.muon_lr or config.lr) / config.lr if rule == "muon" else scale


def build_optimizer(
    model: nn.Module, config: OptimizerConfig, *, offloaded: bool, is_half: bool = False
) -> torch.optim.Optimizer:
    """The optimizer that DeepSpeed wraps. ``offloaded``, to the host or to files, it must be DeepSpeed's CPU kernel.

    ``is_half``: forward and backward are in 16 bits.
    """
    groups = parameter_groups(model.named_parameters(), config)
    common: dict[str, Any] = {"lr": config.lr, "betas": (config.beta1, config.beta2), "eps": config.eps}
    if config.name != "adamw":
        optimizer: torch.optim.Optimizer = LibraryOptimizer(groups, config, is_half=is_half)
    elif offloaded:  # the first one compiles a C++ kernel
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
