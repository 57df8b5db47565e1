"""Ranks that hold the same weights are compared: one flipped bit is found and its rank named, training alone raises
nothing."""

import pytest
import torch

from megadeberta.engine.replicas import ReplicaCheck, _factors, describe, hash_parameters
from megadeberta.errors import EXIT_REPLICAS, ReplicaError
from tests.distributed.layouts import Layout, build, train_steps
from tests.ranks import run_ranks

BF16 = (("bf16", {"enabled": True}),)
LAYOUTS = [
    Layout("v3", data=3, micro_batch=1, batch=3),
    Layout("v3", data=2, zero=1, micro_batch=2, more=BF16),
    Layout("rtd-gdes", data=2, zero=2, micro_batch=2),
    Layout("v3", data=2, tensor=2, zero=1, micro_batch=2),
]


def _flip(parameter: torch.nn.Parameter, element: int, bit: int) -> None:
    size = parameter.element_size()
    words = parameter.detach().view(-1).view({2: torch.int16, 4: torch.int32}[size])
    words[element] ^= torch.tensor(1 << bit, dtype=words.dtype)


def _train_and_flip(rank: int, world_size: int, layout: Layout, bad: int) -> str:
    """Compare after every step, then flip the lowest bit of one weight of rank ``bad``; the error of this rank."""
    assembly = build(layout)
    named = dict(assembly.stepper.engine.module.named_parameters())
    device, groups = torch.device("cpu"), assembly.groups
    check = ReplicaCheck(named.items(), every=1, data_group=groups.data, place=groups.place, device=device)
    for step in range(2):
        train_steps(assembly, layout, [step])
        check.compare(step + 1)
    if rank == bad:
        _flip(next(named[name] for name in named if name.endswith("up.weight")), 7, 0)
    with pytest.raises(ReplicaError) as raised:
        check.compare(2)
    return str(raised.value)


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_one_flipped_bit_stops_every_rank_with_the_rank_and_the_parameter(layout: Layout) -> None:
    ranks = layout.topology.world_size
    texts = run_ranks(_train_and_flip, ranks, layout, ranks - 1)
    others = next(group for group in layout.topology.data_groups if ranks - 1 in group)
    named = f"rank {ranks - 1} holds" if len(others) > 2 else f"ranks {', '.join(map(str, others))} hold"
    assert set(texts) == {texts[0]}
    assert texts[0].startswith(f"step 2: {named}") and "up.weight)" in texts[0]
    assert ReplicaError.exit_code == EXIT_REPLICAS


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_every_single_bit_and_a_swap_change_the_hash(dtype: torch.dtype) -> None:
    generator, factors = torch.Generator().manual_seed(3), _factors(torch.device("cpu"))
    parameter = torch.nn.Parameter(torch.randn(5000, generator=generator).to(dtype))
    before = hash_parameters([parameter], factors)
    for element in (0, 4095, 4096, 4999):
        for bit in range(8 * parameter.element_size() - 1):
            _flip(parameter, element, bit)
            assert hash_parameters([parameter], factors) != before
            _flip(parameter, element, bit)
    assert hash_parameters([parameter], factors) == before
    with torch.no_grad():
        parameter[:2] = parameter[:2].flip(0).clone()
    assert hash_parameters([parameter], factors) != before


def test_the_odd_one_of_many_is_named_and_both_of_two() -> None:
    def report(tensor: int, *hashes: int) -> dict[str, list]:
        return {"of": [0, tensor], "hashes": list(hashes), "names": [f"p{n}" for n in range(len(hashes))]}

    many = describe([report(0, 1, 2), report(1), report(0, 1, 2), report(1), report(0, 1, 3), report(1)], 9)
    assert many.startswith("step 9: rank 4 holds other weights than its replicas (p0, p1): memory")
    two = describe([report(0, *range(5)), report(0, 9, *range(4))], 9)
    assert two.startswith("step 9: ranks 0, 1 hold weights that differ (p0, p1, p2 and 2 more)")
