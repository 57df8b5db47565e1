"""Master weights and moments that DeepSpeed keeps in files on NVMe: one sub-group of them in memory at a time.

ZeRO-3 with ``offload_optimizer.device=nvme`` empties the flat tensors of its sub-groups after every step and reads them
back for the next one (DeepSpeed 0.19.8, runtime/swap_tensor/). Sub-groups below 1 MiB stay in memory.
"""

from typing import Any

from deepspeed.runtime.zero.stage3 import DeepSpeedZeroOptimizer_Stage3
from torch import Tensor


class SwappedState:
    """Which flat tensors of an optimizer are in files, and the way in and out. For other optimizers: none."""

    def __init__(self, optimizer: Any) -> None:
        self._optimizer = optimizer
        self._numbers: dict[int, int] = {}
        self._present: int | None = None
        if isinstance(optimizer, DeepSpeedZeroOptimizer_Stage3):
            flats = enumerate(optimizer.fp32_partitioned_groups_flat)
            self._numbers = {
                id(flat): number for number, flat in flats if optimizer._swappable_optimizer_subgroup(number)
            }

    def bring(self, flat: Tensor) -> None:
        """Read ``flat`` and its moments into memory; what was there before goes, without its changes."""
        number = self._numbers.get(id(flat))
        if number is not None and number != self._present:
            self.put_back(changed=False)
            self._optimizer._optimizer_states_and_gradient_swap_in(number)
            self._present = number

    def put_back(self, *, changed: bool) -> None:
        """Free the memory; with ``changed``, write the files first."""
        if self._present is not None:
            self._optimizer._writeback_swap_state(self._present, write_opt_state=changed, write_gradients=False)
            self._present = None
