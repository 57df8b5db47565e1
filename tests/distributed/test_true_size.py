"""One step of v3-base at its true size: tensor x pipeline parallelism equals the single process. Takes 8 GB."""

import shutil
from pathlib import Path

import pytest
import torch

from tests.distributed.layouts import Layout, train_rank
from tests.ranks import run_ranks


def _one_step(rank: int, world_size: int, layout: Layout, folder: Path) -> tuple[tuple[float, float], dict]:
    """(loss, gradient norm) of the step and the validation after it; the parameters go into ``folder``."""
    steps, held_out, parameters = train_rank(rank, world_size, layout, 1)
    torch.save(
        {name: (part and (part.dim, part.start), t) for name, (part, t) in parameters.items()}, folder / f"{rank}"
    )
    return steps[0], held_out


@pytest.mark.campaign
@pytest.mark.timeout(1800)
def test_a_step_of_v3_base_under_two_shards_and_two_stages_is_that_of_one_process(tmp_path: Path) -> None:
    found = {}
    for layout in (Layout("v3-base", micro_batch=2), Layout("v3-base", tensor=2, pipeline=2, zero=1, micro_batch=2)):
        folder = tmp_path / str(layout.tensor)
        folder.mkdir()
        found[layout.tensor] = run_ranks(_one_step, layout.topology.world_size, layout, folder, timeout=900.0)
    ((expected, held_out),) = found[1]
    for step, score in found[2]:
        assert step == pytest.approx(expected, abs=1e-5, rel=1e-5)
        assert score == pytest.approx(held_out, abs=1e-5, rel=1e-5)
    whole = {name: tensor for name, (_, tensor) in torch.load(tmp_path / "1" / "0", mmap=True).items()}
    covered = dict.fromkeys(whole, 0)
    for rank in range(4):
        for name, (part, tensor) in torch.load(tmp_path / "2" / f"{rank}", mmap=True).items():
            expected_part = whole[name] if part is None else whole[name].narrow(*part, tensor.size(part[0]))
            # One step of AdamW moves a weight by at most the learning rate, 2e-3.
            assert float((tensor - expected_part).abs().max()) < 1e-5, name
            covered[name] += tensor.numel()
    shutil.rmtree(tmp_path)  # pytest would keep its 1.5 GB
    assert all(count >= whole[name].numel() for name, count in covered.items())
