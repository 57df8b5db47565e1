"""The collectives of the checkpoint package on torch.distributed: text travels as bytes, never as a pickle.

n bytes of a text
"""

import torch
import torch.distributed as dist


class TorchCollectives:
    """Text among all ranks of a process group, as uint8 tensors on ``device``.

    Args:
        device: where the group's backend wants its tensors: the CPU for gloo, the rank's GPU for NCCL.
        group: the default group when None; it must contain every rank of the job.
    """

    def __init__(self, device: torch.device, group: dist.ProcessGroup | None = None) -> None:
        self._device = device
        self._group = group

    @property
    def rank(self) -> int:
        """This rank's number in the group."""
        return dist.get_rank(self._group)

    @property
    def world_size(self) -> int:
        """Number of ranks in the group."""
        return dist.get_world_size(self._group)

    def broadcast_text(self, text: str | None) -> str:
        """The text of rank 0. Two broadcasts over the group."""
        data = self._encode(text or "")  # [n]
        size = torch.tensor([len(data)], device=self._device)
        dist.broadcast(size, group=self._group, group_src=0)
        if self.rank != 0:
            data = torch.empty(int(size), dtype=torch.uint8, device=self._device)
        dist.broadcast(data, group=self._group, group_src=0)
        return self._decode(data)

    def all_gather_text(self, text: str) -> list[str]:
        """The texts of all ranks, in rank order. Two all-gathers over the group."""
        data = self._encode(text)  # [n]
        sizes = torch.empty(self.world_size, 1, dtype=torch.int64, device=self._device)
        dist.all_gather(list(sizes), torch.tensor([len(data)], device=self._device), group=self._group)
        lengths = sizes.flatten().tolist()
        padded = torch.zeros(max(lengths), dtype=torch.uint8, device=self._device)
        padded[: len(data)] = data
        gathered = [torch.empty_like(padded) for _ in lengths]
        dist.all_gather(gathered, padded, group=self._group)
        return [self._decode(part[:length]) for part, length in zip(gathered, lengths, strict=True)]

    def _encode(self, text: str) -> torch.Tensor:
        # A leading byte: no tensor of zero length has to travel.
        return torch.frombuffer(bytearray(b" " + text.encode()), dtype=torch.uint8).to(self._device)

    def _decode(self, data: torch.Tensor) -> str:
        return bytes(data.cpu().numpy()[1:]).decode()
