"""What a rank draws and holds on its host while it starts, counted in bytes and calls."""

import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, distributed
from torch.testing._internal.distributed.fake_pg import FakeStore
from torch.utils._python_dispatch import TorchDispatchMode

from megadeberta import assembly
from megadeberta.layers.objectives import list_layers
from megadeberta.model import initialize
from megadeberta.model.initialize import ROW_BLOCK, fill_parameter, give_storage
from megadeberta.model.whole import WholeModel
from megadeberta.parallel.tensor.apply import TensorParallel, apply_tensor_parallel
from tests.distributed.layouts import Layout, build
from tests.models import run_config
from tests.ranks import run_ranks

TEN_BILLION = {
    "vocab_size": 128100,
    "hidden_size": 4096,
    "num_hidden_layers": 48,
    "num_attention_heads": 64,
    "intermediate_size": 16384,
    "position_buckets": 256,
    "max_relative_positions": 512,
    "conv_kernel_size": 3,
}
TENSOR = 8


class HostBytes(TorchDispatchMode):
    """Counts the bytes of the storages on the CPU that operators make in it."""

    def __init__(self) -> None:
        super().__init__()
        self.most = self._now = 0
        self._known: set[int] = set()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, (tuple, list)) else (result,):
            if isinstance(tensor, Tensor) and tensor.device.type == "cpu":
                self._add(tensor.untyped_storage())
        return result

    def _add(self, storage: torch.UntypedStorage) -> None:
        if storage._cdata not in self._known:
            self._known.add(storage._cdata)
            self._now += storage.nbytes()
            self.most = max(self.most, self._now)
            weakref.finalize(storage, self._drop, storage._cdata, storage.nbytes())

    def _drop(self, key: int, size: int) -> None:
        self._known.discard(key)
        self._now -= size


def _host_bytes(rank: int, world_size: int) -> tuple[int, int, int]:
    """Of giving the last of 8 tensor-parallel ranks its shard of 10B parameters; with it, the parameters of the model
    and of the shard. The meta device stands for the accelerator, and what is drawn for the memory that it takes."""
    config = run_config(model=TEN_BILLION)
    distributed.init_process_group("fake", store=FakeStore(), rank=TENSOR - 1, world_size=TENSOR)
    with torch.device("meta"):
        model = WholeModel(list_layers(config.model, config.objective))
    whole = sum(parameter.numel() for parameter in model.parameters())
    apply_tensor_parallel(model, TensorParallel(distributed.group.WORLD, config.model.vocab_size))

    def fill(name: str, parameter: torch.nn.Parameter) -> None:
        fill_parameter(name, parameter, seed=1, std=0.02)

    with pytest.MonkeyPatch.context() as patch, HostBytes() as host:
        patch.setattr(
            initialize, "draw_rows", lambda name, block, shape, **_: torch.empty(ROW_BLOCK, *shape[1:])[: shape[0]]
        )
        give_storage(model, fill, device="meta", dtype=torch.bfloat16)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    return host.most, whole, sum(parameter.numel() for parameter in model.parameters())


def test_a_rank_of_ten_billion_parameters_holds_a_block_of_rows_on_its_host() -> None:
    ((most, whole, shard),) = run_ranks(_host_bytes, 1, distributed=False)
    assert whole > 10e9 and whole / TENSOR < shard < 1.05 * whole / TENSOR
    assert 0 < most <= 2 * ROW_BLOCK * TEN_BILLION["intermediate_size"] * 4


@contextmanager
def _engine_inputs() -> Iterator[list[list[tuple[torch.dtype, bool]]]]:
    """Type, and whether there is a NaN, of every parameter that DeepSpeed is given, and no engine behind it."""
    found: list[list[tuple[torch.dtype, bool]]] = []

    def stop(model: torch.nn.Module, *_: object, **__: object) -> None:
        values = [getattr(parameter, "ds_tensor", parameter) for parameter in model.parameters()]
        found.append([(value.dtype, bool(value.isnan().any())) for value in values])
        raise InterruptedError

    with pytest.MonkeyPatch.context() as patch:
        for name in ("build_engine", "build_pipeline_engine"):
            patch.setattr(assembly, name, stop)
        yield found


def _given(rank: int, world_size: int, layout: Layout, loads: bool) -> tuple[list[tuple[torch.dtype, bool]], int]:
    """What DeepSpeed is given, and how many blocks of rows were drawn for it."""
    drawn: list[str] = []
    draw = initialize.draw_rows

    def count(name: str, *args: Any, **kwargs: Any) -> Tensor:
        drawn.append(name)
        return draw(name, *args, **kwargs)

    with _engine_inputs() as inputs, pytest.MonkeyPatch.context() as patch:
        patch.setattr(initialize, "draw_rows", count)
        with pytest.raises(InterruptedError):
            build(layout, loads_checkpoint=loads)
    return inputs[0], len(drawn)


BF16 = (("bf16", {"enabled": True}),)
LAYOUTS = [
    Layout("v3", micro_batch=2, zero=1, more=BF16),
    Layout("v3", tensor=2, micro_batch=2, zero=1, more=BF16),
    Layout("v3", pipeline=2, micro_batch=2, zero=1, more=BF16),
    Layout("v3", data=2, micro_batch=2, zero=3, more=BF16),
]


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_no_weight_is_drawn_where_a_checkpoint_gives_all_and_none_is_kept_in_fp32(layout: Layout) -> None:
    for loads in (False, True):
        for given, drawn in run_ranks(_given, layout.topology.world_size, layout, loads):
            assert given and all(dtype == torch.bfloat16 and unset == loads for dtype, unset in given)
            assert (drawn == 0) == loads
