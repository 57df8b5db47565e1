"""A model cut into stages, run one after the other in one process: the whole model, forward and backward."""

import pytest
import torch
from torch import Tensor

from megadeberta.batch import Batch
from megadeberta.config.model import ModelConfig
from megadeberta.config.objective import ObjectiveConfig
from megadeberta.layers.micro_batch import MicroBatch
from megadeberta.layers.objectives import list_layers
from megadeberta.layers.stages import StagePlan, cuttable_items, plan_stages
from megadeberta.model.dropout import set_sites
from megadeberta.model.initialize import initialize
from megadeberta.model.whole import WholeModel
from megadeberta.parallel.pipeline.packing import term_names
from megadeberta.parallel.pipeline.stage import Stage
from tests.models import (
    INPUT_POSITIONS,
    V1,
    V2,
    masked_batch,
    pack_two,
    read_left_to_right,
    tiny_rtd,
    tiny_v3,
)

LENGTH = 12
SIZES = {"dropout": 0.2, "initializer_range": 0.2}
V1_AT_INPUT = V1 | INPUT_POSITIONS
CASES = {
    "v3": ({}, ObjectiveConfig()),
    "v2 with convolution": (V2, ObjectiveConfig()),
    "v1": (V1_AT_INPUT, ObjectiveConfig()),
    "narrow words": ({"enhanced_mask_decoder": False, "embedding_size": 8}, ObjectiveConfig()),
    "no relative attention": ({"relative_attention": False}, ObjectiveConfig()),
    "left to right": ({}, ObjectiveConfig(name="mlm_ar")),
    "gdes": ({}, tiny_rtd()),
    "gdes v1": (V1_AT_INPUT, tiny_rtd()),
    "es": ({}, tiny_rtd("es")),
    "nes": ({}, tiny_rtd("nes")),
}


def _batch(model: ModelConfig, objective: ObjectiveConfig, *, packed: bool) -> Batch:
    batch = masked_batch(model, samples=3, length=LENGTH, step=5)
    if objective.name == "mlm_ar":
        batch = read_left_to_right(batch, LENGTH, 0, 4)
    return pack_two(batch, 5) if packed else batch


def _stages(
    model: ModelConfig, objective: ObjectiveConfig, count: int, *, fields: list[str], recompute: bool
) -> tuple[list[Stage], list[StagePlan]]:
    plans = plan_stages(list_layers(model, objective), MicroBatch(1, LENGTH, 8), count)
    stages = [Stage(plans, n, batch_fields=fields, recompute=recompute) for n in range(count)]
    for stage in stages:
        _fill(stage)
    return stages, plans


def _fill(module: torch.nn.Module) -> None:
    initialize(module, seed=7, std=0.2)
    with torch.no_grad():  # biases and differences of their own, so that all take part
        for name, parameter in module.named_parameters():
            if parameter.dim() == 1 or name.endswith(".delta"):
                parameter += 0.1 * torch.cos(torch.arange(parameter.numel()) + len(name)).view_as(parameter)
    set_sites(module.named_modules(), seed=7)
    module.double()


def _loss(terms: dict[str, tuple[Tensor, Tensor]]) -> Tensor:
    return sum(total * (3.0 if name == "rtd_loss" else 1.0) for name, (total, _) in terms.items() if "_loss" in name)


def _run(stages: list[Stage], batch: Batch, fields: list[str]) -> tuple[dict, list[tuple[Tensor, ...]]]:
    """Forward and backward as DeepSpeed does it: detached tensors between the stages, gradients of floats only."""
    inputs, outputs = [tuple(batch[name] for name in fields)], []
    for stage in stages:
        outputs.append(stage(inputs[-1]))
        if stage is not stages[-1]:
            inputs.append(tuple(t.detach().requires_grad_(t.is_floating_point()) for t in outputs[-1]))
    _loss(outputs[-1]).backward()
    for received, sent in zip(reversed(inputs[1:]), reversed(outputs[:-1]), strict=True):
        floats = [(s, r) for s, r in zip(sent, received, strict=True) if s.is_floating_point()]
        assert {t.dtype for t in sent} <= {torch.float64, torch.int64}
        for number, (tensor, twin) in enumerate(floats):
            tensor.backward(twin.grad, retain_graph=number < len(floats) - 1)
    return outputs[-1], inputs


def _gradients(stages: list[torch.nn.Module]) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    for stage in stages:
        for name, parameter in stage.named_parameters():
            if parameter.grad is not None:
                found[name] = found.get(name, 0) + parameter.grad
    return found


@pytest.mark.parametrize(("case", "recompute"), [*((case, False) for case in CASES), ("v3", True), ("gdes", True)])
def test_two_three_or_most_stages_are_the_whole_model(case: str, recompute: bool) -> None:
    shape, objective = CASES[case]
    model = tiny_v3(**SIZES | shape)
    batch = _batch(model, objective, packed=case in ("v3", "gdes", "v2 with convolution"))
    fields = list(batch)
    whole = WholeModel(list_layers(model, objective))
    _fill(whole)
    expected, _ = whole(**batch)
    _loss(expected).backward()
    for count in (2, 3, len(cuttable_items(whole.layers))):
        stages, _ = _stages(model, objective, count, fields=fields, recompute=recompute)
        terms, _ = _run(stages, batch, fields)
        assert list(terms) == list(expected) == list(term_names(whole.layers))
        for name, (total, number) in expected.items():
            # The same operations in float64; only the order in which gradients are added differs.
            torch.testing.assert_close(terms[name][0].double(), total.double(), rtol=1e-12, atol=1e-12)
            assert int(terms[name][1]) == int(number)
        found, wanted = _gradients(stages), _gradients([whole])
        assert found.keys() == wanted.keys()
        for name, gradient in wanted.items():
            torch.testing.assert_close(found[name], gradient, rtol=1e-9, atol=1e-12)


def test_stages_have_the_global_names_and_values(subtests: pytest.Subtests) -> None:
    for case, (shape, objective) in CASES.items():
        model = tiny_v3(**SIZES | shape)
        whole = WholeModel(list_layers(model, objective))
        _fill(whole)
        wanted = dict(whole.named_parameters())
        for count in (2, 3, 4):
            with subtests.test(case=case, count=count):
                stages, plans = _stages(model, objective, count, fields=["input_ids"], recompute=False)
                for stage, plan in zip(stages, plans, strict=True):
                    held = dict(stage.named_parameters())
                    assert {name: tuple(p.shape) for name, p in held.items()} == plan.parameters
                    for name, parameter in held.items():
                        assert torch.equal(parameter, wanted[name]), name
                owned = [name for plan in plans for name in plan.parameters if name not in plan.copies]
                assert sorted(owned) == sorted(wanted)


def test_only_hidden_states_a_loss_and_numbers_pass_between_stages() -> None:
    model, objective = tiny_v3(**SIZES), tiny_rtd()
    batch = _batch(model, objective, packed=False)
    stages, _ = _stages(model, objective, 4, fields=list(batch), recompute=False)
    _, inputs = _run(stages, batch, list(batch))
    for tensors in inputs[1:]:
        floats = [tuple(tensor.shape) for tensor in tensors if tensor.is_floating_point()]
        # [B, L, D] or [B, Q, D], but for a cut right behind the draw, and behind the generator's head its loss; never
        # [B, Q, V].
        assert floats in [[*states, *loss] for states in ([(3, LENGTH, 16)], [(3, 3, 16)], []) for loss in ([], [(1,)])]
        assert floats
        assert all(tensor.size(-1) <= LENGTH for tensor in tensors if not tensor.is_floating_point())
