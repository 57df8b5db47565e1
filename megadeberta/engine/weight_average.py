"""An exponential average of the weights, kept beside them while they are trained.

It is a state of the optimizer like its moments: in fp32, for the master weights that the rank has, divided as they are,
in checkpoints under the same names. So it costs no collective, and does not depend on the layout.
"""

from typing import Any

import torch

from megadeberta.checkpoint.content import AVERAGE


def keep_average(optimizer: torch.optim.Optimizer, decay: float) -> None:
    """From now on every update ends with ``average = decay * average + (1 - decay) * weight``; after the first one the
    average is the weight, as ``torch.optim.swa_utils.AveragedModel`` has it.

    An update that changes nothing leaves the average as it is: one of another part of the model, one that
    ``update_gate.py`` refuses, and fp16 steps that overflow.
    """

    @torch.no_grad()
    def average(inner: Any, _args: Any, _kwargs: Any) -> None:
        refused = getattr(inner, "found_inf", None)
        for group in inner.param_groups:
            for flat in group["params"] if group["active"] else ():
                state = inner.state.get(flat)
                if not state:
                    continue
                if AVERAGE not in state:
                    state[AVERAGE] = flat.detach().clone()
                    continue
                weight = 1 - decay if refused is None else (1 - decay) * (1 - refused.to(flat.dtype))
                state[AVERAGE].lerp_(flat.detach(), weight)

    optimizer.register_step_post_hook(average)
    optimizer.keeps_average = True  # type: ignore[attr-defined]


def keeps_average(optimizer: torch.optim.Optimizer) -> bool:
    """Whether its state has an average."""
    return getattr(optimizer, "keeps_average", False)
