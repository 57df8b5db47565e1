"""Who reads the logits over the vocabulary: by recipe and device, and the kernels only where they are right."""

import pytest
import torch
from torch import nn

from megadeberta.errors import ConfigError
from megadeberta.layers.catalogue import rtd_layers
from megadeberta.layers.objectives import objective_of
from megadeberta.model import logit_kernels
from megadeberta.model.dropout import set_sites
from megadeberta.model.initialize import initialize
from megadeberta.model.logit_kernels import select_logits
from megadeberta.model.mlm_head import MlmHead
from megadeberta.model.sampling import Sample
from megadeberta.model.whole import WholeModel
from megadeberta.ops import triton_gumbel_max
from megadeberta.ops.logits import CPU_CODE, TORCH, TRITON, planned
from tests.models import masked_batch, tiny_rtd, tiny_v3

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
TRIAL = "_try_kernels"


def _head_and_draw() -> nn.Module:
    return nn.ModuleList([MlmHead(tiny_v3()), Sample(1.0)])


def _select(setting: str, device: torch.device, **options) -> tuple[set[str], str]:
    """What head and draw are set to, and the line for the log."""
    model = _head_and_draw()
    line = select_logits(model, setting, device, torch.bfloat16, **options)
    return {module.implementation for module in model}, line


@pytest.mark.parametrize(("setting", "taken"), [("auto", CPU_CODE), ("torch", TORCH), ("triton", TRITON)])
def test_a_cpu_takes_its_own_code_unless_another_is_named(setting: str, taken: str) -> None:
    assert _select(setting, CPU) == ({taken}, f"logits {setting}: {taken} on cpu")


def test_a_gpu_takes_the_kernels_if_every_rank_finds_them_right(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logit_kernels, TRIAL, lambda device, dtype: "")
    assert _select("auto", CUDA) == ({TRITON}, "logits auto: triton on cuda")
    line = "logits auto: torch on cuda; triton: not right on another rank"
    assert _select("auto", CUDA, agree=lambda mine: max(mine, 1.0)) == ({TORCH}, line)
    monkeypatch.setattr(logit_kernels, TRIAL, lambda device, dtype: "the loss is wrong")
    assert _select("auto", CUDA) == ({TORCH}, "logits auto: torch on cuda; triton: the loss is wrong")


def test_what_does_not_run_here_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match=r"training\.logits=cpu: it runs on a CPU only.*cuda; use auto"):
        _select("cpu", CUDA)
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    with pytest.raises(ConfigError, match=r"training\.logits=triton: it needs a GPU.*; use auto"):
        _select("triton", CPU)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_trial_finds_the_kernels_right(dtype: torch.dtype) -> None:
    assert logit_kernels._try_kernels(CPU, dtype) == ""


def test_the_trial_finds_wrong_draws_wrong_gradients_and_failures(monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as changed:
        changed.setattr(triton_gumbel_max, "triton_best_ids", lambda rows, keys, *_: (keys.float(), keys * 0))
        assert logit_kernels._try_kernels(CPU, torch.float32) == "the draws are wrong"
    with monkeypatch.context() as changed:
        changed.setattr("megadeberta.ops.triton_softmax_rows.TritonRows.error", lambda self, *_: self._logits * 2)
        assert logit_kernels._try_kernels(CPU, torch.float32) == "the gradient of the states is wrong"
    monkeypatch.setattr("megadeberta.ops.triton_softmax_rows.OPTIONS", {"BLOCK": 3})
    assert logit_kernels._try_kernels(CPU, torch.float32).startswith("failed with ")


def test_memory_is_planned_with_what_auto_is_meant_to_take() -> None:
    assert [planned("auto", on_gpu=on_gpu) for on_gpu in (False, True)] == [CPU_CODE, TRITON]
    assert planned("torch", on_gpu=True) == TORCH


def test_losses_and_draws_of_training_do_not_depend_on_who_reads_the_logits() -> None:
    config, objective = tiny_v3(dropout=0.1, vocab_size=1200), tiny_rtd()
    weights, runs = objective_of(objective).loss_weights(objective), []
    for implementation in (TORCH, CPU_CODE, TRITON):
        model = WholeModel(rtd_layers(config, objective.rtd)).train()
        initialize(model, seed=1, std=0.05)
        set_sites(model.named_modules(), seed=3)
        select_logits(model, implementation, CPU, torch.float32)
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
        run = []
        for step in range(20 if implementation != TRITON else 5):  # through the interpreter
            terms, _ = model(**masked_batch(config, step=step))
            loss = sum(weight * terms[name][0] / terms[name][1] for name, weight in weights.items())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            run.append((float(loss.detach()), float(terms["replaced_rate"][0])))
        runs.append(run)
    for run in runs[1:]:
        for found, expected in zip(run, runs[0], strict=False):
            assert found == pytest.approx(expected, rel=1e-6)
