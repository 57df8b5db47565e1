"""The machine of a plan: nodes of equal GPUs and what connects them."""

from dataclasses import dataclass

_GIB = 2**30


def usual_reserve(memory_gib: float) -> float:
    """GiB of a device to leave to CUDA, NCCL and fragmentation where nobody says otherwise."""
    return 1 + 0.06 * memory_gib


@dataclass(frozen=True)
class Cluster:
    """nodes x gpus devices of ``memory_gib``.

    reserve_gib: of each device, for CUDA, NCCL and what the allocator cannot use. bandwidth_intra, bandwidth_inter: in
    GB/s, what one GPU sends to its own node and to others while all do. tflops: what one GPU sustains on these models,
    in 10^12 operations a second; not the data sheet's peak.
    """

    nodes: int
    gpus: int
    memory_gib: float
    reserve_gib: float
    bandwidth_intra: float = 300.0
    bandwidth_inter: float = 40.0
    tflops: float = 200.0

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
    def usable_bytes(self) -> int:
        """What a plan may fill of one device."""
        return int((self.memory_gib - self.reserve_gib) * _GIB)

    def group_bandwidth(self, *, size: int, stride: int) -> float:
        """Bytes a second of a collective's ring, by rank: ``size`` ranks, ``stride`` apart, as Topology lays them out.

        All groups of the kind communicate at once. A ring that visits m ranks of each node in a row leaves the node
        once and has the links of m GPUs for it.
        """
        if size * stride <= self.gpus:
            return self.bandwidth_intra * 1e9
        members = max(1, self.gpus // stride)
        return min(self.bandwidth_intra, self.bandwidth_inter * members) * 1e9

    def neighbour_bandwidth(self, distance: int) -> float:
        """Bytes a second between ranks that are this far apart."""
        return (self.bandwidth_intra if distance < self.gpus else self.bandwidth_inter) * 1e9
