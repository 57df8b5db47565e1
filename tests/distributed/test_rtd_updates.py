"""Replaced token detection through the engine: layouts agree, and two updates equal one where nothing is shared."""

import functools

import pytest

from tests.distributed.full_weights import gather_weights
from tests.distributed.layouts import Layout, assert_equal, build, micro_batches, run_alone, run_layout
from tests.ranks import run_ranks

BATCH, LR = 8, 3e-3
LAYOUTS = [
    Layout("rtd-gdes", data=2, zero=2, micro_batch=2, batch=BATCH),
    Layout("rtd-gdes", data=2, zero=3, micro_batch=2, batch=BATCH),
    Layout("rtd-gdes", zero=1, micro_batch=4, batch=BATCH),
    Layout("rtd-es", data=2, zero=2, micro_batch=2, batch=BATCH),
    Layout("rtd-gdes-decoupled", data=2, zero=2, micro_batch=2, batch=BATCH),
    Layout("rtd-gdes-decoupled", data=2, zero=1, micro_batch=2, batch=BATCH),
    Layout("rtd-nes-decoupled", micro_batch=4, batch=BATCH),
]


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_rtd_runs_do_not_depend_on_the_layout(layout: Layout) -> None:
    assert_equal(run_layout(layout), run_alone(layout.variant, BATCH))


def _weights(rank: int, world_size: int, layout: Layout) -> tuple[dict, list]:
    """fp32 weights after five steps, and each step's (mlm, rtd) loss."""
    stepper = build(layout).stepper
    losses = []
    for step in range(5):
        batches = micro_batches(layout, step, rank)
        targets, _ = stepper.share_counts(batches)
        means = stepper.train_step(batches, step=step, targets=targets, lr=layout.lr).terms.means
        losses.append((means["mlm_loss"], means["rtd_loss"]))
    return {name: tensor.numpy() for name, tensor in gather_weights(stepper.engine).items()}, losses


@functools.cache
def _run(
    sharing: str, decoupled: bool, clip: float, lr: tuple[float, float | None], bf16: bool = False
) -> tuple[dict, list]:
    """``lr``: of all, and the discriminator's own."""
    block = (("gradient_clipping", clip), ("bf16", {"enabled": bf16}))
    variant = f"rtd-{sharing}" + "-decoupled" * decoupled
    layout = Layout(variant, zero=1, batch=BATCH, lr=lr[0], discriminator_lr=lr[1], more=block)
    return run_ranks(_weights, 1, layout)[0]


def _run_both(sharing: str, *, clip: float = 0.0, lr: tuple[float, float | None] = (LR, None)) -> list[tuple]:
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
    (joint, _), (decoupled, _) = (_run("nes", decoupled, 0.0, (LR, None), True) for decoupled in (False, True))
    assert max(_differences(joint, decoupled).values()) < 1e-6


def test_two_updates_equal_one_for_gdes_while_the_generator_stands_still() -> None:
    (joint, _), (decoupled, _) = _run_both("gdes", lr=(1e-12, LR))
    assert max(_differences(joint, decoupled).values()) < 1e-6


def test_the_second_update_reads_the_generator_as_the_first_left_it() -> None:
    (_, joint), (_, decoupled) = _run_both("gdes")
    assert decoupled[0][0] == pytest.approx(joint[0][0], abs=1e-6)  # the generator's first loss is before any update
    assert abs(decoupled[0][1] - joint[0][1]) > 1e-4


def test_each_update_is_clipped_by_its_own_norm() -> None:
    (joint, _), (decoupled, _) = _run_both("nes", clip=1e-3)
    free, _ = _run("nes", False, 0.0, (LR, None))
    moved = {name: d for name, d in _differences(joint, decoupled).items() if name.startswith("generator")}
    # lambda makes the discriminator's gradient the larger one; joint clipping shrinks the generator's with it. Adam
    # hides a constant factor but for its epsilon and the norm's changes, so the difference is small and not zero.
    assert max(moved.values()) > 0
    assert max(_differences(joint, free).values()) > 0


def test_the_discriminator_has_a_learning_rate_of_its_own() -> None:
    slow, _ = _run("nes", False, 0.0, (LR, 1e-12))
    fast, _ = _run("nes", False, 0.0, (LR, None))
    moved = _differences(slow, fast)
    assert max(d for name, d in moved.items() if name.startswith("discriminator")) > 1e-3
    assert max(d for name, d in moved.items() if name.startswith("generator")) < 1e-6


def _group_order(rank: int, world_size: int) -> list[tuple[str, float]]:
    stepper = build(Layout("rtd-gdes", zero=1)).stepper
    return [(group["part"], group["weight_decay"]) for group in stepper.engine.optimizer.param_groups]


def test_parts_have_parameter_groups_of_their_own() -> None:
    assert run_ranks(_group_order, 1)[0] == [
        ("generator", 0.01),
        ("generator", 0.0),
        ("discriminator", 0.01),
        ("discriminator", 0.0),
    ]
