"""The trial itself: the recipe's own calls, wrong results found, failures survived, tiles compared.

Shapes: B micro batch · L length · N heads · Q target rows.
"""

from collections.abc import Callable, Iterator
from functools import partial
from itertools import count
from typing import Any
from unittest.mock import patch

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from megadeberta.config.run import RunConfig
from megadeberta.layers.objectives import list_layers
from megadeberta.model.attention_backend import select_attention
from megadeberta.model.dropout import set_sites
from megadeberta.model.kernel_choice import trial
from megadeberta.model.kernel_choice.call import attention_calls, padded
from megadeberta.model.kernel_choice.findings import ENCODER, MASK_DECODER, Tried
from megadeberta.model.kernel_choice.residual_check import check_residual_norm
from megadeberta.model.kernel_choice.trial import RecipeTrial
from megadeberta.model.whole import WholeModel
from megadeberta.ops import residual_norm
from megadeberta.ops.attention import comparison
from megadeberta.ops.attention.backends import BACKENDS, Backend, register_backend
from megadeberta.ops.attention.comparison import AttentionCall, AttentionCheck
from megadeberta.ops.attention.reference import reference_attention
from megadeberta.ops.attention.triton_plan import AttentionPlan, LaunchShape, plan_for, small_plan
from tests.models import masked_batch, pack_two, run_config, tiny_v3

CPU = torch.device("cpu")
BATCH, LENGTH = 3, 24


def _config(*, batch: int = BATCH, model: dict[str, object] | None = None, **sections: dict[str, object]) -> RunConfig:
    shape = {"dropout": 0.1, "hidden_size": 32, "max_position_embeddings": 64} | (model or {})
    sections = {"data": {"sequence_length": LENGTH} | sections.pop("data", {})} | sections
    sizes = {"train_batch_size": batch, "train_micro_batch_size_per_gpu": batch}
    return run_config(model=tiny_v3(**shape), deepspeed=sizes, **sections)


def _calls(**sections: dict[str, object]) -> dict[str, AttentionCall]:
    return attention_calls(_config(**sections), dtype=torch.float32, device=CPU)


def _trial(config: RunConfig | None = None, **options: object) -> RecipeTrial:
    settings = {"patience": 60.0, "measure": _no_time} | options
    return RecipeTrial(config or _config(), dtype=torch.float32, device=CPU, **settings)


def _no_time(run: Callable[[], object]) -> float:
    run()
    return 1.0


@pytest.fixture
def _backends() -> Iterator[None]:
    with patch.dict(BACKENDS):
        register_backend(Backend("spoiled", "wrong by five percent", _spoiled))
        register_backend(Backend("lean", "needs no memory", _equal))
        register_backend(Backend("broken", "does not compile", _broken))
        register_backend(Backend("full only", "wrong where a mask hides something", _wrong_with_a_mask))
        register_backend(Backend("of rows", "fails with rows of their own", _of_whole_sequences))
        yield


def _equal(*content: Tensor, **options: object) -> Tensor:
    return reference_attention(*content, **options)


def _spoiled(*content: Tensor, **options: object) -> Tensor:
    return 1.05 * reference_attention(*content, **options)


def _wrong_with_a_mask(*content: Tensor, **options: object) -> Tensor:
    return reference_attention(*content, **options | {"mask": None})


def _broken(*content: Tensor, **options: object) -> Tensor:
    raise RuntimeError("out of shared memory\nand more")


def _of_whole_sequences(*content: Tensor, **options: object) -> Tensor:
    if options["query_positions"] is not None:
        raise ValueError("no rows of their own")
    return reference_attention(*content, **options)


# The calls are those of the recipe.


def test_the_calls_have_the_micro_batch_and_the_rows_of_the_recipe() -> None:
    calls = _calls()
    assert calls[ENCODER].tensors["query"].shape == (BATCH, 2, LENGTH, 16)
    assert calls[ENCODER].query_positions is None
    rows = calls[MASK_DECODER]
    assert rows.tensors["query"].shape == (BATCH, 2, 8, 16)
    assert rows.query_positions is not None
    targets = rows.query_positions.tolist()
    assert all(row == sorted(set(row)) for row in targets)
    assert len({tuple(row) for row in targets}) == BATCH
    assert [call.dropout.probability for call in calls.values()] == [0.1, 0.1]
    assert {name: tuple(table.shape) for name, table in rows.tensors.items() if "position" in name} == {
        "position key": (2, 11, 16),
        "position query": (2, 11, 16),
    }


def test_without_a_mask_decoder_there_is_one_call() -> None:
    discriminator = {"enhanced_mask_decoder": False}
    config = run_config(model=tiny_v3(**discriminator))
    assert list(attention_calls(config, dtype=torch.float32, device=CPU)) == [ENCODER]


def test_the_calls_have_the_heads_of_one_rank() -> None:
    config = _config().model_copy(update={"parallel": _config().parallel.model_copy(update={"tensor": 2})})
    call = attention_calls(config, dtype=torch.bfloat16, device=CPU)[ENCODER]
    assert call.tensors["query"].shape == (BATCH, 1, LENGTH, 16)
    assert {tensor.dtype for tensor in call.tensors.values()} == {torch.bfloat16}


def _hidden_pairs(call: AttentionCall) -> Tensor:
    assert call.mask is not None
    return ~call.mask.dense(LENGTH)


def test_the_mask_is_that_of_the_recipe() -> None:
    unlimited = _calls()
    assert [call.mask for call in unlimited.values()] == [None, None]
    assert [_hidden_pairs(padded(call)).any(2).all().item() for call in unlimited.values()] == [True, True]
    packed = _hidden_pairs(_calls(data={"packing": "documents"})[ENCODER])
    assert 0.5 < packed.float().mean() < 0.9  # four documents hide three quarters
    assert torch.equal(packed, packed.mT)
    causal = _hidden_pairs(_calls(objective={"name": "ar"})[ENCODER])
    assert torch.equal(causal[0], torch.ones(LENGTH, LENGTH, dtype=torch.bool).triu(1))
    mixed = _hidden_pairs(_calls(objective={"name": "mlm_ar", "autoregressive": {"share": 0.34}})[ENCODER])
    assert mixed.any(dim=(1, 2)).tolist() == [True, False, False]


@pytest.mark.parametrize("tokens", ["documents", "full", "padded"])
def test_the_kernels_are_called_as_a_model_calls_them(monkeypatch: pytest.MonkeyPatch, tokens: str) -> None:
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    config = _config(data={"packing": "documents"} if tokens == "documents" else {})
    with _Signatures() as tried:
        for each in attention_calls(config, dtype=torch.bfloat16, device=CPU).values():
            call = padded(each) if tokens == "padded" else each
            call.gradients("triton", torch.ones_like(call.tensors["query"]))
    model = WholeModel(list_layers(config.model, config.objective)).to(torch.bfloat16)
    set_sites(model.named_modules(), seed=0)
    select_attention(model, "triton", CPU)
    batch = masked_batch(config.model, samples=BATCH, length=LENGTH, slots=8)
    if tokens == "full":
        del batch["attention_mask"]
    with _Signatures() as trained:
        terms, _ = model(**(pack_two(batch, 8) if tokens == "documents" else batch))
        terms["mlm_loss"][0].backward()
    assert len(tried.found) == 4  # forward and backward, of the encoder and of the mask decoder
    assert tried.found == trained.found


class _Signatures(TorchDispatchMode):
    """What the operators of the kernels are called with, which decides what is compiled; computes nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.found: set[tuple[object, ...]] = set()

    def __torch_dispatch__(self, op: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = op.name()
        if not name.startswith("megadeberta::attention_"):
            return op(*args, **(kwargs or {}))
        self.found.add((name, *map(_signature, args)))
        query = args[0 if name.endswith("forward") else 3]
        dense = [tensor.transpose(1, 2).contiguous().zero_() for tensor in args[:3] if isinstance(tensor, Tensor)]
        if name.endswith("forward"):
            return torch.zeros_like(dense[0]), query.new_zeros(query.shape[:3], dtype=torch.float32)
        content = [torch.zeros(t.size(0), t.size(2), t.size(1), t.size(3), dtype=t.dtype) for t in args[3:6]]
        return *content, *(t.transpose(0, 1).contiguous() for t in args[6:8])


def _signature(value: object) -> object:
    return (tuple(value.shape), value.stride(), value.dtype) if isinstance(value, Tensor) else value


# What is right.


@pytest.mark.parametrize("role", [ENCODER, MASK_DECODER])
def test_a_part_of_a_call_gives_that_part_of_the_results(role: str) -> None:
    call = _calls(data={"packing": "documents"})[role]
    assert torch.allclose(call.part(2, 1).run("reference"), call.run("reference")[:2, :1], atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rounding_passes_and_an_error_of_five_percent_does_not(_backends: None, dtype: torch.dtype) -> None:
    check = AttentionCheck(attention_calls(_config(), dtype=dtype, device=CPU)[ENCODER])
    assert check.finding("cpu") == ""
    assert check.finding("spoiled").startswith("the output is ")
    assert "away from the reference; rounding is " in check.finding("spoiled")


@pytest.mark.parametrize("role", [ENCODER, MASK_DECODER])
def test_what_is_wrong_with_padding_only_is_found_too(_backends: None, role: str) -> None:
    trial = _trial(_config(training={"residual_norm": "torch"}))
    assert trial.finding(role, "cpu") == ""
    assert trial.finding(role, "full only").startswith("with padding, the output is ")


def test_the_reference_computes_a_part_only(monkeypatch: pytest.MonkeyPatch) -> None:
    call = _calls()[ENCODER]
    monkeypatch.setattr(comparison, "_SCORES", 2 * LENGTH * LENGTH)
    with patch.object(AttentionCall, "part", autospec=True, side_effect=AttentionCall.part) as part:
        AttentionCheck(call)
    assert part.call_args.args[1:] == (2, 1)  # samples and heads


def test_what_is_right_is_computed_without_tf32(monkeypatch: pytest.MonkeyPatch) -> None:
    allowed: list[bool] = []
    run = AttentionCall.run

    def note(call: AttentionCall, backend: str) -> Tensor:
        allowed.append(torch.backends.cuda.matmul.allow_tf32)
        return run(call, backend)

    monkeypatch.setattr(AttentionCall, "run", note)
    torch.backends.cuda.matmul.allow_tf32 = True
    try:
        AttentionCheck(_calls()[ENCODER]).finding("reference")
    finally:
        torch.backends.cuda.matmul.allow_tf32 = False
    assert allowed == [False, True, True]  # what is right, its rounding, the candidate


def test_a_wrong_residual_norm_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    check = partial(check_residual_norm, config=_config(), dtype=torch.float32, device=CPU)
    assert check("cpu") == ""
    right = residual_norm.IMPLEMENTATIONS["torch"]
    monkeypatch.setitem(residual_norm.IMPLEMENTATIONS, "cpu", lambda *given, **options: 1.05 * right(*given, **options))
    assert check("cpu").startswith("residual norm cpu: the output is ")
    assert _trial().run(["cpu"])[ENCODER]["cpu"].finding.startswith("residual norm cpu: ")


# The trial.


def test_what_fails_is_said_and_the_rest_is_timed(_backends: None) -> None:
    found = _trial().run(["reference", "lean", "spoiled", "broken", "of rows"])
    for role, tried in found.items():
        assert (tried["reference"].seconds, tried["lean"].seconds) == (1.0, 1.0), role
        assert tried["spoiled"].seconds is None
        assert not tried["spoiled"].failed
        assert tried["broken"].finding == "failed with RuntimeError: out of shared memory"
        assert tried["broken"].failed
    assert found[ENCODER]["of rows"].seconds == 1.0
    assert found[MASK_DECODER]["of rows"].finding == "failed with ValueError: no rows of their own"


def test_a_rival_without_memory_loses_and_the_others_are_timed(_backends: None) -> None:
    def measure(run: Callable[[], object]) -> float:
        if run.args == ("reference",):
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 80 GiB")
        return 1.0

    found = _trial(measure=measure).run(["reference", "lean"])[ENCODER]
    assert found["reference"].finding == "needs more memory than there is"
    assert (found["reference"].seconds, found["lean"].seconds) == (None, 1.0)


def test_a_backend_that_does_not_run_here_is_not_tried() -> None:
    with patch("megadeberta.ops.attention.backends.has_triton", lambda: False):
        found = _trial().run(["cpu", "triton"])
    assert found[ENCODER]["triton"].finding.startswith("Triton is not installed")
    assert not found[ENCODER]["triton"].failed
    assert found[ENCODER]["cpu"].seconds is None, "without a candidate there is nothing to compare with"


def test_the_real_kernels_pass_their_trial(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    monkeypatch.setattr(trial, "variants", lambda shape, plan: [])  # the interpreter does not know of warps
    config = _config(model={"hidden_size": 16, "num_attention_heads": 1}, batch=1)
    found = _trial(config, measure=lambda run: 1.0).run(["triton"])
    kernels = {role: tried["triton"] for role, tried in found.items()}
    assert [(tried.seconds, tried.finding) for tried in kernels.values()] == [(1.0, ""), (1.0, "")]
    assert [(tried.shape.queries, tried.shape.gathered) for tried in kernels.values()] == [(24, False), (8, True)]
    assert all(plan_for(tried.shape) == tried.base for tried in kernels.values())


def test_other_tiles_are_timed_and_wrong_ones_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    def finding(check: AttentionCheck, backend: str) -> str:
        return "wrong" if _plan_asked(backend).key.warps == 8 else ""

    monkeypatch.setenv("TRITON_INTERPRET", "1")
    with patch.object(AttentionCheck, "finding", finding):
        found = _trial(
            _config(training={"residual_norm": "torch"}),
            measure=lambda run: 0.5 if _plan_asked("triton").forward.stages == 2 else 1.0,
        ).run(["triton"])
    tried = found[ENCODER]["triton"]
    assert {plan.seconds for plan in tried.plans if plan.plan.forward.stages == 2} == {0.5}
    assert {plan.seconds for plan in tried.plans if plan.plan.forward.stages == 1} == {1.0}
    assert [plan for plan in tried.plans if plan.plan.key.warps == 8] == []
    assert len(tried.plans) == 11
    assert plan_for(tried.shape) == tried.base  # only the choice of the job sets another one


def _plan_asked(backend: str) -> AttentionPlan:
    return plan_for(LaunchShape(backend, 16, 4, LENGTH, LENGTH, gathered=False, dropout=True, masked=True))


def _small(shape: LaunchShape) -> AttentionPlan:
    plan = small_plan(shape)
    assert plan is not None
    return plan


def test_where_the_usual_tiles_do_not_fit_smaller_ones_are_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    def finding(check: AttentionCheck, backend: str) -> str:
        if _plan_asked(backend).forward.rows == 64:
            raise RuntimeError("out of resource: shared memory, Required: 131584, Hardware limit: 101376")
        return ""

    monkeypatch.setenv("TRITON_INTERPRET", "1")
    with patch.object(AttentionCheck, "finding", finding):
        tried = _trial(_config(training={"residual_norm": "torch"}), measure=lambda run: 1.0).run(["triton"])
    assert tried[ENCODER]["triton"].seconds == 1.0
    assert tried[ENCODER]["triton"].base == _small(tried[ENCODER]["triton"].shape)
    assert {plan.plan.forward.rows for plan in tried[ENCODER]["triton"].plans} == {32}


def test_a_trial_without_patience_keeps_the_default_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    config, times = _config(training={"residual_norm": "torch"}), count(step=100.0)
    with patch.object(AttentionCheck, "finding", _asks_for_a_plan):
        found = _trial(config, measure=lambda run: 1.0, clock=lambda: next(times), patience=50.0).run(["triton"])
        patient = _trial(config, measure=lambda run: 1.0).run(["triton"])
    assert (found[ENCODER]["triton"].seconds, found[ENCODER]["triton"].plans) == (1.0, ())
    assert len(patient[ENCODER]["triton"].plans) == 12


def test_kernels_that_leave_a_call_to_others_are_not_taken_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(type(BACKENDS["gluon"]), "reason_not_to_run", lambda backend, device_type: "")
    config = _config(training={"residual_norm": "torch"})
    with patch.object(AttentionCheck, "finding", lambda check, backend: _asks_for_a_plan(check, "triton")):
        tried = _trial(config, measure=lambda run: 1.0).run(["gluon"])
    assert tried[ENCODER]["gluon"] == Tried(None, "leaves such calls to triton")


def _asks_for_a_plan(check: AttentionCheck, backend: str) -> str:
    return "" if _plan_asked(backend) else "no plan"
