"""The arithmetic of a step on a model of two numbers: what is divided by which count, and who is updated when.

Generator g and discriminator d are numbers; over a batch the masked-token loss is ``g * labels``, the replaced-token
loss ``d * inputs``, both summed over their targets. At the end of the accumulation the engine averages gradients over
ranks in the backward pass and steps with plain gradient descent, as DeepSpeed does.
"""

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, distributed, nn

from megadeberta.batch import Batch
from megadeberta.config.deepspeed_block import EngineSettings
from megadeberta.config.objective import DISCRIMINATOR, GENERATOR, ObjectiveConfig
from megadeberta.engine.step import Flags
from megadeberta.engine.terms import TermSums
from megadeberta.engine.whole_step import WholeStepper, gradient_norm
from megadeberta.errors import DivergenceError
from megadeberta.layers.objectives import objective_of
from megadeberta.topology import Topology
from tests.ranks import run_ranks

LR, LR_SCALE, RTD_WEIGHT = 0.5, 3.0, 10.0
START = {GENERATOR: 2.0, DISCRIMINATOR: -1.0}


class TwoNumbers:
    """A fake engine. ``refuse``: as an optimizer does when gradients overflow."""

    def __init__(self, accumulation: int, *, refuse: bool = False) -> None:
        self.module = nn.ParameterDict(
            {name: nn.Parameter(torch.tensor(value, dtype=torch.float64)) for name, value in START.items()}
        )
        scales = {GENERATOR: 1.0, DISCRIMINATOR: LR_SCALE}
        self.optimizer = SimpleNamespace(
            param_groups=[
                {"params": [self.module[part]], "lr": 0.0, "lr_scale": scale, "part": part, "active": True}
                for part, scale in scales.items()
            ]
        )
        self.optimizer.found_inf = torch.zeros(())  # where it is 1, torch's fused AdamW changes nothing
        self.refuse = refuse
        self.loss_factor = self.gradient_factor = 1.0
        self.passes = 0
        self._accumulation = accumulation
        self._calls = 0
        self._norm = math.nan

    @property
    def values(self) -> dict[str, float]:
        return {part: parameter.item() for part, parameter in self.module.items()}

    def train(self) -> None:
        pass

    def eval(self) -> None:
        pass

    def __call__(self, *, part: str | None = None, **batch: Tensor) -> tuple[dict[str, Any], Batch]:
        # Ranks that make different numbers of passes would wait here for each other.
        distributed.all_reduce(torch.zeros(1))
        self.passes += 1
        terms: dict[str, Any] = {}
        if part in (None, GENERATOR):
            labels = batch["masked_labels"]
            loss = self.module[GENERATOR] * labels.double().sum() * self.loss_factor
            terms["mlm_loss"] = (loss, (labels != 0).sum())
        if part in (None, DISCRIMINATOR):
            read = (batch["input_ids"] * batch["attention_mask"]).double().sum()
            terms["rtd_loss"] = (self.module[DISCRIMINATOR] * read, batch["attention_mask"].sum())
        return terms, {**batch, "input_ids": batch["input_ids"] + 1}  # as if every token were sampled anew

    def backward(self, loss: Tensor, *, scale_wrt_gas: bool) -> None:
        assert not scale_wrt_gas
        loss.backward()
        self._calls += 1
        if self._calls % self._accumulation:
            return
        for parameter in self.module.values():
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            parameter.grad *= self.gradient_factor
            distributed.all_reduce(parameter.grad)
            parameter.grad /= distributed.get_world_size()

    def step(self) -> None:
        if self._calls % self._accumulation:
            return
        self._norm = math.hypot(*(parameter.grad.item() for parameter in self.module.values()))
        for group in self.optimizer.param_groups:
            for parameter in group["params"]:
                if group["active"] and not self.refuse and not self.optimizer.found_inf:
                    parameter.data -= group["lr"] * parameter.grad
        for parameter in self.module.values():
            parameter.grad = None

    def was_step_applied(self) -> bool:
        return not self.refuse

    def get_global_grad_norm(self) -> float:
        return self._norm


def _stepper(engine: TwoNumbers, *, decoupled: bool = False, **block: Any) -> WholeStepper:
    settings = ObjectiveConfig.model_validate(
        {"name": "rtd", "rtd": {"loss_weight": RTD_WEIGHT, "decoupled": decoupled}}
    )
    return WholeStepper(
        engine,
        updates=objective_of(settings).updates(settings),
        batch_fields=list(_batch([1], [1])),
        settings=EngineSettings.of(block or {"zero_optimization": {"stage": 1}}),
        topology=Topology(data=distributed.get_world_size()),
        device=torch.device("cpu"),
    )


def _batch(ids: list[int], labels: list[int]) -> Batch:
    """One sequence; id 0 is padding, label 0 an empty slot."""
    tokens = torch.tensor([ids])
    return {
        "input_ids": tokens,
        "attention_mask": (tokens != 0).long(),
        "masked_positions": torch.zeros(1, len(labels), dtype=torch.int64),
        "masked_labels": torch.tensor([labels]),
        "sample_numbers": torch.zeros(1, dtype=torch.int64),
    }


# Two micro batches for each of two ranks, with different numbers of tokens and targets; the third has no target.
SHARES = (
    (_batch([5, 7, 0, 0], [3, 0]), _batch([1, 2, 3, 4], [4, 6])),
    (_batch([9, 0, 0, 0], [0, 0]), _batch([2, 2, 2, 0], [8, 5])),
)
LABELS, TARGETS = 3 + 4 + 6 + 8 + 5, 5
TOKENS, READ = 2 + 4 + 1 + 3, 12 + 10 + 9 + 6


def _step(rank: int, world_size: int, decoupled: bool) -> tuple[dict[str, int], Any, dict[str, float]]:
    engine = TwoNumbers(accumulation=2)
    stepper = _stepper(engine, decoupled=decoupled)
    targets, any_rank = stepper.share_counts(SHARES[rank], Flags(stops=rank == 1))
    assert any_rank == Flags(stops=True)
    result = stepper.train_step(SHARES[rank], step=0, targets=targets, lr=LR)
    return targets, (result.loss, result.terms.means, dict(result.grad_norms), result.grad_norm), engine.values


def test_every_loss_is_divided_once_by_its_count_over_the_global_batch() -> None:
    mlm, rtd = LABELS / TARGETS, READ / TOKENS
    for targets, (loss, means, norms, norm), values in run_ranks(_step, 2, False):
        assert targets == {"mlm_loss": TARGETS, "rtd_loss": TOKENS}
        assert means == pytest.approx({"mlm_loss": 2.0 * mlm, "rtd_loss": -1.0 * rtd}, rel=1e-12)
        assert loss == pytest.approx(2.0 * mlm - RTD_WEIGHT * rtd, rel=1e-12)
        gradients = {GENERATOR: mlm, DISCRIMINATOR: RTD_WEIGHT * rtd}
        assert norms == pytest.approx({"": math.hypot(*gradients.values())}, rel=1e-12)
        assert norm == pytest.approx(norms[""], rel=1e-12)
        assert values[GENERATOR] == pytest.approx(2.0 - LR * mlm, rel=1e-12)
        assert values[DISCRIMINATOR] == pytest.approx(-1.0 - LR * LR_SCALE * RTD_WEIGHT * rtd, rel=1e-12)


def test_two_updates_leave_the_other_part_alone_and_the_second_reads_what_the_first_made() -> None:
    mlm, rtd = LABELS / TARGETS, (READ + TOKENS) / TOKENS  # the generator's update made every id one larger
    for _, (loss, means, norms, norm), values in run_ranks(_step, 2, True):
        assert means == pytest.approx({"mlm_loss": 2.0 * mlm, "rtd_loss": -1.0 * rtd}, rel=1e-12)
        assert loss == pytest.approx(2.0 * mlm - RTD_WEIGHT * rtd, rel=1e-12)
        assert norms == pytest.approx({GENERATOR: mlm, DISCRIMINATOR: RTD_WEIGHT * rtd}, rel=1e-12)
        assert norm == pytest.approx(math.hypot(*norms.values()), rel=1e-12)
        assert values[GENERATOR] == pytest.approx(2.0 - LR * mlm, rel=1e-12)
        assert values[DISCRIMINATOR] == pytest.approx(-1.0 - LR * LR_SCALE * RTD_WEIGHT * rtd, rel=1e-12)


def _evaluate(rank: int, world_size: int) -> tuple[float, dict[str, float], dict[str, int], int, dict[str, float]]:
    engine = TwoNumbers(accumulation=1)
    result = _stepper(engine).evaluate([*SHARES[0], SHARES[1][1]] if rank == 0 else [])
    return result.loss, result.terms.means, dict(result.terms.counts), engine.passes, engine.values


def test_ranks_with_fewer_batches_pass_blank_ones_forward_that_add_nothing() -> None:
    labels, targets, read, tokens = LABELS, TARGETS, READ - 9, TOKENS - 1
    for loss, means, counts, passes, values in run_ranks(_evaluate, 2):
        assert passes == 3
        assert counts == {"mlm_loss": targets, "rtd_loss": tokens}
        assert means == pytest.approx({"mlm_loss": 2.0 * labels / targets, "rtd_loss": -read / tokens}, rel=1e-12)
        assert loss == pytest.approx(2.0 * labels / targets - RTD_WEIGHT * read / tokens, rel=1e-12)
        assert values == START


def _diverge(rank: int, world_size: int) -> list[tuple[str, dict[str, float]]]:
    """What a step says and leaves behind: a loss and a gradient that are not finite on one rank, and refusals."""
    outcomes = []
    for factor in ("loss_factor", "gradient_factor"):
        engine = TwoNumbers(accumulation=2)
        setattr(engine, factor, math.nan if rank == 1 else 1.0)
        outcomes.append(_failure(engine, rank, zero_optimization={"stage": 0}))
    for precision in ("bf16", "fp16"):
        outcomes.append(_failure(TwoNumbers(accumulation=2, refuse=True), rank, **{precision: {"enabled": True}}))
    return outcomes


def _failure(engine: TwoNumbers, rank: int, **block: Any) -> tuple[str, dict[str, float]]:
    stepper = _stepper(engine, **block)
    targets, _ = stepper.share_counts(SHARES[rank])
    try:
        result = stepper.train_step(SHARES[rank], step=3, targets=targets, lr=LR)
    except DivergenceError as error:
        return str(error), engine.values
    return f"applied: {result.applied}", engine.values


def test_no_number_changes_at_a_step_that_diverges_and_every_rank_says_so() -> None:
    for outcomes in run_ranks(_diverge, 2):
        (loss, *_), (gradient, *_), (refused, *_), (skipped, *_) = outcomes
        assert loss.startswith("step 4: the loss (mlm_loss) is nan on rank 1; no weight was changed at this step.")
        # In fp32 without ZeRO the step looks at the gradient itself; elsewhere the optimizer refuses.
        for text in (gradient, refused):
            assert text.startswith("step 4: the gradient norm is nan while the loss is finite; no weight was changed")
        assert skipped == "applied: False"
        assert all(values == START for _, values in outcomes)


def test_the_norm_is_that_of_all_gradients_in_fp64() -> None:
    parameters = [nn.Parameter(torch.zeros(3)) for _ in range(3)]
    parameters[0].grad = torch.tensor([3.0, 0.0, 4.0])
    parameters[2].grad = torch.tensor([12.0, 0.0, 0.0])
    assert gradient_norm(parameters, device=torch.device("cpu")) == 13.0
    large = nn.Parameter(torch.empty(2**24 + 2))
    large.grad = torch.ones(2**24 + 2)
    # In fp32 a running sum of ones stops at 2 ** 24.
    assert gradient_norm([large], device=torch.device("cpu")) == math.sqrt(2**24 + 2)


def test_micro_batches_are_added_up_in_fp64_and_read_as_terms_with_whole_counts() -> None:
    def terms(loss: float, hits: int) -> dict[str, tuple[Tensor, Tensor]]:
        return {
            "mlm_loss": (torch.tensor(loss), torch.tensor(3)),
            "mlm_accuracy": (torch.tensor(hits), torch.tensor(3)),
        }

    sums = TermSums.of(terms(2.0**24, 2)).plus(terms(1.0, 1))
    read = sums.read(sums.values.flatten().tolist())
    assert read.sums == {"mlm_loss": 2.0**24 + 1, "mlm_accuracy": 3.0}
    assert read.counts == {"mlm_loss": 6, "mlm_accuracy": 6}
    assert sums.total("mlm_loss").item() == 2.0**24 + 1
