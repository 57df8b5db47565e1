"""The collectives of a training step are exactly those of the formulas, and none carries the vocabulary."""

from collections import Counter

import pytest
import torch
from torch import Tensor, distributed

from megadeberta.layers.micro_batch import MicroBatch
from megadeberta.layers.objectives import list_layers
from megadeberta.layers.vocabulary import vocabulary_rows
from tests.distributed.layouts import GLOBAL_BATCH, LENGTH, LR, SLOTS, Layout, build, global_batch
from tests.ranks import run_ranks

Call = tuple[str, tuple[int, ...], int]
"""Kind, shape of the whole tensor, bytes of an element."""


def _record(rank: int, world_size: int, layout: Layout) -> list[Call]:
    """The collectives of one step over the tensor-parallel group."""
    assembly = build(layout)
    stepper, tensor_group = assembly.stepper, assembly.groups.tensor
    whole = global_batch(0, layout.variant)
    size = layout.micro_batch
    batches = [{name: t[s : s + size] for name, t in whole.items()} for s in range(0, GLOBAL_BATCH, size)]
    targets, _ = stepper.share_counts(batches)
    calls: list[Call] = []

    def spy(name: str, biggest) -> None:
        real = getattr(distributed, name)

        def recorded(*args, **options):
            if options.get("group") is tensor_group:
                tensor: Tensor = biggest(*args, **options)
                calls.append((name, tuple(tensor.shape), tensor.element_size()))
            return real(*args, **options)

        setattr(distributed, name, recorded)

    spy("all_reduce", lambda *args, **options: args[0] if args else options["tensor"])
    spy("all_gather_single", lambda output, *args, **options: output)
    spy("reduce_scatter_single", lambda output, whole, **options: whole)
    for name in ("broadcast", "all_gather", "reduce_scatter", "all_to_all_single", "gather", "scatter", "reduce"):
        spy(name, lambda *args, **options: pytest.fail("a collective that the formulas do not know"))
    stepper.train_step(batches, step=0, targets=targets, lr=LR)
    return calls


def _predicted(layout: Layout) -> list[Call]:
    calls = []
    whole = global_batch(0, layout.variant)
    for start in range(0, GLOBAL_BATCH, layout.micro_batch):
        labels = whole["masked_labels"][start : start + layout.micro_batch]
        batch = MicroBatch(
            layout.micro_batch,
            LENGTH,
            SLOTS,
            tensor=2,
            sequence_parallel=layout.sequence_parallel,
            activation_checkpointing=layout.recompute,
            targets=(int((labels != 0).sum()),),
        )
        for layer in list_layers(*layout.configs):
            calls += layer.collectives(batch)
    assert calls
    return [(f"{c.kind}_single" if c.kind != "all_reduce" else c.kind, c.shape, c.element_bytes) for c in calls]


def _sizes(calls: list[Call]) -> Counter[tuple[str, int, int]]:
    return Counter((kind, torch.Size(shape).numel(), size) for kind, shape, size in calls)


@pytest.mark.parametrize(
    "layout",
    [
        Layout("v3", tensor=2, zero=1, micro_batch=2),
        Layout("v3", tensor=2, zero=1, micro_batch=4, sequence_parallel=True, recompute=True),
        Layout("v2-conv", tensor=2, zero=1, micro_batch=4, sequence_parallel=True),
        Layout("v1", tensor=2, zero=1, micro_batch=4, recompute=True),
        Layout("rtd-gdes-v1", tensor=2, zero=1, micro_batch=4, sequence_parallel=True),
    ],
    ids=str,
)
def test_a_step_communicates_what_the_formulas_say(layout: Layout) -> None:
    for calls in run_ranks(_record, 2, layout, timeout=200.0):
        # DeepSpeed's gradient norm of each parameter group, and its overflow check.
        scalars = [call for call in calls if torch.Size(call[1]).numel() == 1]
        assert len(scalars) <= 5
        assert _sizes([call for call in calls if call not in scalars]) == _sizes(_predicted(layout))
        # The larger shard, that of rank 1, has a number of rows that no other tensor has.
        vocabulary = layout.configs[0].vocab_size
        forbidden = {vocabulary, len(vocabulary_rows(vocabulary, 2)[1])}
        assert not any(forbidden & set(shape) for _, shape, _ in calls)
