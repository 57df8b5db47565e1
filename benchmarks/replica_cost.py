"""What `numerics.replicas_every` costs: one comparison's hashes beside one step, by CPU seconds and by bytes moved.

    python benchmarks/replica_cost.py [--hidden 256 --layers 4 --batch 16 --repeats 5]

On one thread; bytes are those that torch's operators read and write. The step is forward, backward and torch's AdamW;
the exchange, 16 bytes for each parameter, is not in it. Printed too: the smallest interval that costs at most 1 %.
"""

import argparse
import math
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from step_models import build_ours, draw_batch, our_loss
from torch import Tensor
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from megadeberta.config.model import ModelConfig
from megadeberta.engine.replicas import _factors, hash_parameters

VOCABULARY, LENGTH, EVERY = 4_000, 128, 10


def main() -> None:
    arguments = _parse_arguments()
    torch.set_num_threads(1)
    compare, step, count = build(hidden=arguments.hidden, layers=arguments.layers, batch=arguments.batch)
    print(f"{count / 1e6:.1f} M parameters, batch {arguments.batch} x {LENGTH}")
    _show("CPU seconds", *(_median(action, arguments.repeats) for action in (compare, step)))
    _show("GB moved", *(moved_bytes(action) / 1e9 for action in (compare, step)))


def build(*, hidden: int, layers: int, batch: int) -> tuple[Callable[[], object], Callable[[], object], int]:
    """The hashes of one comparison, one step, and the number of parameters."""
    device = torch.device("cpu")
    config = ModelConfig(
        vocab_size=VOCABULARY,
        hidden_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=max(1, hidden // 64),
        intermediate_size=4 * hidden,
    )
    model = build_ours(config, backend="auto", device=device)
    parameters, factors = list(model.parameters()), _factors(device)
    optimizer = torch.optim.AdamW(parameters, fused=True)
    drawn = draw_batch(batch, LENGTH, VOCABULARY)

    def step() -> None:
        our_loss(model, drawn).backward()
        optimizer.step()
        optimizer.zero_grad()

    return lambda: hash_parameters(parameters, factors), step, sum(each.numel() for each in parameters)


def moved_bytes(action: Callable[[], object]) -> int:
    """Bytes that the operators of an action take and give."""
    with _MovedBytes() as moved:
        action()
    return moved.total


def _show(unit: str, compare: float, each: float) -> None:
    share = compare / each
    print(
        f"{unit}: step {each:.4g}, hashes {compare:.4g}: {100 * share:.2f} % of a step, {100 * share / EVERY:.3f} % at "
        f"every {EVERY}th; at most 1 % with replicas_every {max(1, math.ceil(100 * share))}"
    )


class _MovedBytes(TorchDispatchMode):
    """Adds up the bytes of what operators take and give; views move none."""

    def __init__(self) -> None:
        super().__init__()
        self.total = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        if not function.is_view:
            tensors = pytree.tree_leaves((args, kwargs, result))
            self.total += sum(each.numel() * each.element_size() for each in tensors if isinstance(each, Tensor))
        return result


def _median(action: Callable[[], object], repeats: int) -> float:
    """CPU seconds, the first call not counted."""
    seconds = []
    for _ in range(repeats + 1):
        started = time.process_time()
        action()
        seconds.append(time.process_time() - started)
    return statistics.median(seconds[1:])


def _parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name, value in (("hidden", 256), ("layers", 4), ("batch", 16), ("repeats", 5)):
        parser.add_argument(f"--{name}", type=int, default=value)
    return parser.parse_args()


if __name__ == "__main__":
    main()
