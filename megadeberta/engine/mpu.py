"""What DeepSpeed asks about the layout when there is tensor parallelism and no pipeline.

Its ``PipelineModule`` answers the same questions from its own topology.
"""

from torch import distributed
from torch.distributed import ProcessGroup


class ModelParallelUnit:
    """The groups of this rank under the method names of Megatron's ``mpu`` that DeepSpeed 0.19.8 calls.

    Without a pipeline the ranks that hold one model are those that share its tensors. There must be no attribute
    ``initialize_sequence_parallel``: DeepSpeed would take the object for Ulysses' and leave the shards of the other
    ranks out of the gradient norm (runtime/zero/stage_1_and_2.py, stage3.py).
    """

    def __init__(self, *, tensor: ProcessGroup, data: ProcessGroup) -> None:
        self._tensor = tensor
        self._data = data

    def get_data_parallel_group(self) -> ProcessGroup:
        return self._data

    def get_data_parallel_group_ranks(self) -> list[int]:
        return distributed.get_process_group_ranks(self._data)

    def get_data_parallel_rank(self) -> int:
        return distributed.get_rank(self._data)

    def get_data_parallel_world_size(self) -> int:
        return distributed.get_world_size(self._data)

    def get_model_parallel_group(self) -> ProcessGroup:
        return self._tensor

    def get_model_parallel_rank(self) -> int:
        return distributed.get_rank(self._tensor)

    def get_model_parallel_world_size(self) -> int:
        return distributed.get_world_size(self._tensor)

    get_tensor_model_parallel_group = get_model_parallel_group
    get_tensor_model_parallel_rank = get_model_parallel_rank
    get_tensor_model_parallel_world_size = get_model_parallel_world_size
    get_slice_parallel_group = get_model_parallel_group
    get_slice_parallel_rank = get_model_parallel_rank
    get_slice_parallel_world_size = get_model_parallel_world_size

    def get_tensor_model_parallel_src_rank(self) -> int:
        return distributed.get_global_rank(self._tensor, 0)
