"""Query, key and value projections: three linear layers, the three in one autograd function, one concatenated product.

    python benchmarks/joint_linear.py [--tokens 128 512 1024 4096] [--width 768] [--repeats 40]

Forward and backward in fp32 on one thread; CPU time, interleaved, medians.
"""

import argparse

import torch
from stopwatch import interleave, print_ratios
from torch import Tensor, nn
from torch.nn import functional

from megadeberta.model.joint_linear import JointLinear, pairs_of

SEPARATE = "three layers"


def concatenated(hidden: Tensor, layers: list[nn.Linear]) -> tuple[Tensor, ...]:
    """``[M, D]`` -> three times ``[M, D]`` by one product."""
    weights, biases = zip(*pairs_of(layers), strict=True)
    return functional.linear(hidden, torch.cat(weights), torch.cat(biases)).split(hidden.size(-1), -1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tokens", type=int, nargs="+", default=[128, 512, 1024, 4096])
    parser.add_argument("--width", type=int, default=768)
    parser.add_argument("--repeats", type=int, default=40)
    args = parser.parse_args()
    torch.set_num_threads(1)
    layers = [nn.Linear(args.width, args.width) for _ in range(3)]
    project = JointLinear()
    for tokens in args.tokens:
        print(f"{tokens} tokens, width {args.width}")
        hidden = torch.randn(tokens, args.width, requires_grad=True)
        grads = [torch.randn(tokens, args.width) for _ in layers]
        inputs = [hidden, *(parameter for layer in layers for parameter in layer.parameters())]
        forwards = {
            SEPARATE: lambda hidden=hidden: tuple(layer(hidden) for layer in layers),
            "in one": lambda hidden=hidden: project(hidden, *layers),
            "concatenated": lambda hidden=hidden: concatenated(hidden, layers),
        }
        runs = {
            name: lambda run=run, grads=grads, inputs=inputs: torch.autograd.grad(run(), inputs, grads)
            for name, run in forwards.items()
        }
        print_ratios(interleave(runs, args.repeats), SEPARATE)


if __name__ == "__main__":
    main()
