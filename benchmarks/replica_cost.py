"""What `numerics.replicas_every` costs: CPU seconds of one comparison's hashes beside those of one step, on one thread.

    python benchmarks/replica_cost.py [--hidden 256 --layers 4 --batch 16 --repeats 5]

The step is forward, backward and torch's AdamW; the exchange, 16 bytes for each parameter, is not in it.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from step_models import build_ours, draw_batch, our_loss

from megadeberta.config.model import ModelConfig
from megadeberta.engine.replicas import _factors, hash_parameters

VOCABULARY, LENGTH, EVERY = 4_000, 128, 10


def main() -> None:
    arguments = _parse_arguments()
    torch.set_num_threads(1)
    device = torch.device("cpu")
    config = ModelConfig(
        vocab_size=VOCABULARY,
        hidden_size=arguments.hidden,
        num_hidden_layers=arguments.layers,
        num_attention_heads=max(1, arguments.hidden // 64),
        intermediate_size=4 * arguments.hidden,
    )
    model = build_ours(config, backend="auto", device=device)
    parameters, factors = list(model.parameters()), _factors(device)
    optimizer = torch.optim.AdamW(parameters, fused=True)
    batch = draw_batch(arguments.batch, LENGTH, VOCABULARY)

    def step() -> None:
        our_loss(model, batch).backward()
        optimizer.step()
        optimizer.zero_grad()

    compare = _median(lambda: hash_parameters(parameters, factors), arguments.repeats)
    each = _median(step, arguments.repeats)
    count = sum(parameter.numel() for parameter in parameters)
    print(
        f"{count / 1e6:.1f} M parameters, batch {arguments.batch} x {LENGTH}: step {each:.3f} s, hashes {compare:.4f} s"
    )
    print(
        f"{100 * compare / each:.2f} % of a step; {100 * compare / each / EVERY:.3f} % of training at every {EVERY}th"
    )


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
