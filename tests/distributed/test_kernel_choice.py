"""All ranks of a job take the same attention: one of each kind tries it, all hear of it, and any may object."""

import json
import os
from collections.abc import Sequence
from pathlib import Path
from unittest.mock import patch

import pytest
import torch

from megadeberta.assembly import assemble
from megadeberta.engine.collectives import TorchCollectives
from megadeberta.engine.process_group import start_process_group
from megadeberta.model.attention import DisentangledSelfAttention
from megadeberta.model.kernel_choice.cache import VARIABLE, KernelCache
from megadeberta.model.kernel_choice.choose import AttentionChoice, choose_attention
from megadeberta.model.kernel_choice.findings import ENCODER, Findings, Tried
from megadeberta.ops.attention.backends import BACKENDS, Backend, register_backend
from megadeberta.ops.attention.reference import reference_attention
from tests.distributed.layouts import Layout
from tests.ranks import run_ranks

SECONDS = {0: {"reference": 1.0, "triton": 0.4}, 1: {"reference": 0.5, "triton": 1.2}}
"""Two kinds of GPU: on rank 0's the kernels are faster, on rank 1's they are not."""


class _Trial:
    def __init__(self, rank: int, case: str) -> None:
        self.rank, self.case, self.runs = rank, case, 0

    def run(self, backends: Sequence[str]) -> Findings:
        self.runs += 1
        if self.case == "breaks" and self.rank == 0:
            raise RuntimeError("CUDA error")
        return {ENCODER: {name: Tried(seconds) for name, seconds in SECONDS[self.rank].items()}}

    def finding(self, role: str, backend: str) -> str:
        return "the output is 0.5 away" if self.case == "objects" and self.rank == 1 else ""

    def close(self) -> None: ...


def _choose(rank: int, world_size: int, case: str, folder: Path) -> tuple[AttentionChoice, int]:
    """The choice and how often this rank tried."""
    trial = _Trial(rank, case)
    gpu = f"GPU {rank}" if case == "different" else "GPU"
    with patch.dict(BACKENDS):
        del BACKENDS["gluon"]  # the findings are of one kind of kernels
        choice = choose_attention(
            "auto",
            "cuda",
            trial=trial,
            facts=lambda names: {"device": gpu},
            cache=KernelCache(folder / str(rank)),
            ranks=TorchCollectives(torch.device("cpu")),
        )
    return choice, trial.runs


@pytest.mark.parametrize(
    ("case", "taken", "runs", "reason"),
    [
        ("alike", "triton", [1, 0], "2.5x faster than reference"),
        ("different", "reference", [1, 1], "1.2x faster than triton"),
        ("breaks", "reference", [1, 0], "triton: failed with RuntimeError: CUDA error"),
        ("objects", "reference", [1, 0], "triton: the output is 0.5 away on rank 1"),
    ],
)
def test_ranks_agree(tmp_path: Path, case: str, taken: str, runs: list[int], reason: str) -> None:
    found = run_ranks(_choose, 2, case, tmp_path)
    assert [choice.backend for choice, _ in found] == [taken, taken]
    assert [count for _, count in found] == runs
    assert all(reason in choice.line for choice, _ in found)


def _assemble(rank: int, world_size: int, layout: Layout, folder: Path) -> tuple[str, set[str]]:
    """The line for the log, and the backends of the model."""
    register_backend(Backend("quick", "a candidate", _quick, devices=("cpu",), auto_on=("cpu",), needs_trial=True))
    with patch.dict(os.environ, {VARIABLE: str(folder)}):
        assembly = assemble(layout.config, layout.topology, start_process_group(60.0))
    modules = assembly.stepper.engine.module.modules()
    return assembly.attention.line, {each.backend for each in modules if isinstance(each, DisentangledSelfAttention)}


def _quick(*content: torch.Tensor, **options: object) -> torch.Tensor:
    return reference_attention(*content, **options)


def test_a_run_takes_what_the_cache_says(tmp_path: Path) -> None:
    layout = Layout("v3", tensor=2)
    first = run_ranks(_assemble, 2, layout, tmp_path)
    assert "kept in" in first[0][0]
    (path,) = tmp_path.iterdir()
    text = json.loads(path.read_text())
    for tried in text["findings"].values():
        tried["quick"]["seconds"], tried["cpu"]["seconds"] = 1.0, 8.0
    path.write_text(json.dumps(text))
    again = run_ranks(_assemble, 2, layout, tmp_path)
    assert again[0][0].startswith("attention auto: quick on cpu, 8.0x faster than cpu; mask decoder quick, 8.0x faster")
    assert again[0][0].endswith(f"read from {path}")
    assert [backends for _, backends in again] == [{"quick"}, {"quick"}]
