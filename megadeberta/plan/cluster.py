"""The machine of a plan: nodes of equal GPUs and what connects them."""

from dataclasses import dataclass

_GIB = 2**30


def usual_reserve(memory_gib: float) -> float:
    """GiB of a device to leave to CUDA, NCCL and fragmentation where nobody says otherwise."""
    return 1 + 0.06 * memory_gib


@dataclass(frozen=True)
class Cluster:
    """nodes x gpus devices of ``memory_gib``."""

    nodes: int
    gpus: int
    """Per node."""
    memory_gib: float
    reserve_gib: float
    """Of each device, for CUDA, NCCL and what the allocator cannot use."""
    bandwidth_intra: float = 300.0
    """GB/s that one GPU sends to its own node while all do."""
    bandwidth_inter: float = 40.0
    """GB/s that one GPU sends to other nodes while all do."""
    tflops: float = 200.0
    """What one GPU sustains on a plain model with a hidden size of 2048, in 10^12 operations a second; not the data
    sheet's peak. Other widths follow (``rates.width_rate``)."""
    memory_bandwidth: float | None = None
    """GB/s of a GPU's own memory; None = 8 bytes for every 1000 operations that it sustains, as A100 and H100 about
    have."""
    peak_tflops: float | None = None
    """Of the data sheet, for MFU; None = unknown."""
    host_link: float = 20.0
    """GB/s between a GPU and the host's memory, for what is offloaded: PCIe 4."""
    host_memory: float = 120.0
    """GB/s of a node's memory, in which an offloaded optimizer steps. An assumption."""

    @property
    def world_size(self) -> int:
        """GPUs of all machines."""
        return self.nodes * self.gpus

    def describe(self) -> str:
        """One line."""
        return (
            f"{self.nodes} x {self.gpus} GPUs of {self.memory_gib:g} GiB ({self.memory_gib - self.reserve_gib:.1f} to "
            f"fill), {self.bandwidth_intra:g} GB/s inside a node, {self.bandwidth_inter:g} GB/s a GPU between nodes, "
            f"{self.tflops:g} TFLOP/s sustained"
        )

    @property
    def bytes_per_second(self) -> float:
        """Of a GPU's own memory."""
        return (8 * self.tflops if self.memory_bandwidth is None else self.memory_bandwidth) * 1e9

    @property
    def usable_bytes(self) -> int:
        """What a plan may fill of one device."""
        return int((self.memory_gib - self.reserve_gib) * _GIB)

    def leaves_node(self, *, size: int, stride: int = 1) -> bool:
        """Whether a group of ``size`` ranks, ``stride`` apart, has members on two nodes; of any group of the kind."""
        return self.nodes > 1 and self.gpus % (size * stride) != 0 and size > 1

    def group_bandwidth(self, *, size: int, stride: int) -> float:
        """Bytes per second of the slowest collective's ring, by rank: ``size`` ranks, ``stride`` apart, as Topology
        lays them out.

        All groups of the kind communicate at once. A ring that visits m ranks of each node in a row leaves the node
        once and has the links of m GPUs for it; where groups do not divide a node, the one with fewest ranks on a node
        counts.
        """
        if not self.leaves_node(size=size, stride=stride):
            return self.bandwidth_intra * 1e9
        block = size * stride
        fewest = self.gpus
        for group in range(min(self.world_size // block, self.gpus)):  # then the places repeat
            first = group * block % self.gpus
            if first + block <= self.gpus:
                continue
            last = (first + block) % self.gpus or self.gpus
            fewest = min(fewest, self.gpus - first, last)
        return min(self.bandwidth_intra, self.bandwidth_inter * max(1, fewest // stride)) * 1e9

    def border_bandwidth(self) -> float:
        """Bytes per second of the slowest border between pipeline stages: on several nodes one leaves a node."""
        return (self.bandwidth_intra if self.nodes == 1 else self.bandwidth_inter) * 1e9
