"""Memory that is used again when nobody holds it, and never before."""

import torch

from megadeberta.ops.masked_cross_entropy import masked_cross_entropy
from megadeberta.ops.recycled_buffer import RecycledBuffer
from megadeberta.ops.tied_table import TiedGradient, lookup

LIKE = torch.empty(0, dtype=torch.float64)


def test_a_block_is_taken_again_only_when_the_last_view_of_it_is_gone() -> None:
    buffer = RecycledBuffer()
    first = buffer.take(3, 4, like=LIKE).fill_(1.0)
    address, view = first.data_ptr(), first[1:].detach()
    del first
    second = buffer.take(3, 4, like=LIKE).fill_(2.0)
    assert second.data_ptr() != address and bool((view == 1.0).all())
    del view, second
    assert buffer.take(3, 3, like=LIKE).dtype == torch.float64
    assert buffer.take(3, 4, like=LIKE).shape == (3, 4)


def test_the_same_memory_serves_a_loop_but_not_one_of_another_size() -> None:
    buffer = RecycledBuffer()
    addresses = {buffer.take(rows, 4, like=LIKE).data_ptr() for rows in (8, 7, 6, 5, 8)}
    assert len(addresses) == 1
    small = buffer.take(1, 4, like=LIKE)
    assert small.untyped_storage().nbytes() == 32 and small.data_ptr() not in addresses


def test_gradients_of_micro_batches_add_up_and_survive_later_steps() -> None:
    """The parameter's gradient is the buffer itself; a second micro batch must find other memory."""
    torch.manual_seed(0)
    table = torch.randn(50, 6, dtype=torch.float64, requires_grad=True)
    bias, labels = torch.zeros(50, dtype=torch.float64), torch.tensor([3, 9, 0])

    def gradient(ids: list[int]) -> torch.Tensor:
        tied = TiedGradient(table)
        rows = lookup(table, torch.tensor(ids), padding=0, tied=tied)
        masked_cross_entropy(rows, table, bias, labels, tied=tied)[0].backward()
        return table.grad

    batches = [1, 2, 3], [4, 5, 6], [7, 8, 9]
    alone = []
    addresses = set()
    for ids in batches:
        table.grad = None
        addresses.add(gradient(ids).data_ptr())
        alone.append(table.grad.clone())
    assert len(addresses) == 1  # a step without accumulation writes where the last one did
    table.grad = None
    for ids in batches:
        kept = gradient(ids)
    torch.testing.assert_close(kept, sum(alone), rtol=1e-14, atol=0)
    held = kept.detach()
    table.grad = kept = None
    gradient(batches[0])
    torch.testing.assert_close(held, sum(alone), rtol=1e-14, atol=0)


def test_other_devices_and_autocast_allocate_as_torch_does() -> None:
    buffer = RecycledBuffer()
    with torch.autocast("cpu"):
        assert buffer.take(2, 2, like=LIKE) is None
    assert buffer.take(2, 2, like=torch.empty(0, device="meta")) is None
