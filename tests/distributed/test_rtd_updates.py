"""Replaced token detection through the engine: layouts agree, and two updates equal one where nothing is shared."""

import functools

import pytest

from megadeberta.config.objective import ObjectiveConfig
from tests.distributed.full_weights import gather_weights
from tests.distributed.toy_run import global_batch, run_toy, share_of, toy_block, toy_engine
from tests.ranks import run_ranks

STEPS = 20
RTD = {"name": "rtd", "rtd": {"loss_weight": 10.0, "generator_layers": 2}}


def _rtd(**changes: object) -> dict[str, object]:
    return RTD | {"rtd": RTD["rtd"] | changes}


@functools.cache
def _reference(sharing: str, decoupled: bool) -> list[tuple[float, float]]:
    block = toy_block(zero_stage=0, micro_batch=8)
    return run_ranks(run_toy, 1, block, STEPS, _rtd(embedding_sharing=sharing, decoupled=decoupled))[0]


@pytest.mark.parametrize(
    ("sharing", "decoupled", "ranks", "stage", "micro"),
    [
        ("gdes", False, 2, 2, 2),
        ("gdes", False, 2, 3, 2),
        ("gdes", False, 1, 1, 4),
        ("es", False, 2, 2, 2),
        ("gdes", True, 2, 2, 2),
        ("gdes", True, 2, 1, 2),
        ("nes", True, 1, 0, 4),
    ],
)
def test_rtd_losses_do_not_depend_on_the_layout(
    sharing: str, decoupled: bool, ranks: int, stage: int, micro: int
) -> None:
    objective = _rtd(embedding_sharing=sharing, decoupled=decoupled)
    traces = run_ranks(run_toy, ranks, toy_block(zero_stage=stage, micro_batch=micro), STEPS, objective)
    for trace in traces:
        # fp32 with another order of summation; AdamW amplifies rounding a little over 20 steps.
        for found, expected in zip(trace, _reference(sharing, decoupled), strict=True):
            assert found == pytest.approx(expected, abs=1e-5, rel=1e-5)


def _weights(
    rank: int, world_size: int, objective: dict[str, object], clip: float, lr: tuple, bf16: bool
) -> tuple[dict, list]:
    """fp32 weights after five steps, and each step's (mlm, rtd) loss."""
    block = toy_block(zero_stage=1, micro_batch=4, gradient_clipping=clip, bf16={"enabled": bf16})
    stepper, _ = toy_engine(block, objective=ObjectiveConfig.model_validate(objective), lr=lr)
    losses = []
    for step in range(5):
        share = share_of(global_batch(step), rank=rank, world_size=world_size, micro_batch=4)
        targets, _ = stepper.share_counts(share, stop_requested=False)
        means = stepper.train_step(share, step=step, targets=targets, lr=lr[0]).terms.means
        losses.append((means["mlm_loss"], means["rtd_loss"]))
    return {name: tensor.numpy() for name, tensor in gather_weights(stepper.engine).items()}, losses


@functools.cache
def _run(
    sharing: str, decoupled: bool, clip: float, lr: tuple[float, float | None], bf16: bool = False
) -> tuple[dict, list]:
    return run_ranks(_weights, 1, _rtd(embedding_sharing=sharing, decoupled=decoupled), clip, lr, bf16)[0]


def _run_both(sharing: str, *, clip: float = 0.0, lr: tuple[float, float | None] = (3e-3, None)) -> list[tuple]:
    """Joint, decoupled."""
    return [_run(sharing, decoupled, clip, lr) for decoupled in (False, True)]


def _differences(joint: dict, decoupled: dict) -> dict[str, float]:
    assert joint.keys() == decoupled.keys()
    return {name: float(abs(joint[name] - decoupled[name]).max()) for name in joint}


def test_two_updates_equal_one_when_nothing_is_shared_and_nothing_is_clipped() -> None:
    (joint, joint_losses), (decoupled, decoupled_losses) = _run_both("nes")
    # The same gradients by other graphs: fp32 rounding only.
    assert max(_differences(joint, decoupled).values()) < 1e-6
    for one, two in zip(joint_losses, decoupled_losses, strict=True):
        assert two == pytest.approx(one, abs=1e-5)


def test_two_updates_equal_one_in_bf16_too() -> None:
    (joint, _), (decoupled, _) = (_run("nes", decoupled, 0.0, (3e-3, None), True) for decoupled in (False, True))
    assert max(_differences(joint, decoupled).values()) < 1e-6


def test_two_updates_equal_one_for_gdes_while_the_generator_stands_still() -> None:
    (joint, _), (decoupled, _) = _run_both("gdes", lr=(1e-12, 3e-3))
    assert max(_differences(joint, decoupled).values()) < 1e-6


def test_the_second_update_reads_the_generator_as_the_first_left_it() -> None:
    (_, joint), (_, decoupled) = _run_both("gdes")
    assert decoupled[0][0] == pytest.approx(joint[0][0], abs=1e-6)  # the generator's first loss is before any update
    assert abs(decoupled[0][1] - joint[0][1]) > 1e-4


def test_each_update_is_clipped_by_its_own_norm() -> None:
    (joint, _), (decoupled, _) = _run_both("nes", clip=1e-3)
    free, _ = _run("nes", False, 0.0, (3e-3, None))
    moved = {name: d for name, d in _differences(joint, decoupled).items() if name.startswith("generator")}
    # lambda makes the discriminator's gradient the larger one; joint clipping shrinks the generator's with it. Adam
    # hides a constant factor but for its epsilon and the norm's changes, so the difference is small and not zero.
    assert max(moved.values()) > 0
    assert max(_differences(joint, free).values()) > 0


def test_the_discriminator_has_a_learning_rate_of_its_own() -> None:
    slow, _ = _run("nes", False, 0.0, (3e-3, 1e-12))
    fast, _ = _run("nes", False, 0.0, (3e-3, None))
    moved = _differences(slow, fast)
    assert max(d for name, d in moved.items() if name.startswith("discriminator")) > 1e-3
    assert max(d for name, d in moved.items() if name.startswith("generator")) < 1e-6


def _group_order(rank: int, world_size: int) -> list[tuple[str, float]]:
    stepper, _ = toy_engine(toy_block(zero_stage=1, micro_batch=4), objective=ObjectiveConfig.model_validate(_rtd()))
    return [(group["part"], group["weight_decay"]) for group in stepper.engine.optimizer.param_groups]


def test_parts_have_parameter_groups_of_their_own() -> None:
    assert run_ranks(_group_order, 1)[0] == [
        ("generator", 0.01),
        ("generator", 0.0),
        ("discriminator", 0.01),
        ("discriminator", 0.0),
    ]
