"""ZeRO stage 3 with no parameter exempt from division: every layer's weights are there whenever they are read.

The default exempts parameters below 100k elements, all of a toy model's.
"""

from dataclasses import replace

import pytest
import torch

from tests.distributed.layouts import Layout, run_alone, run_layout

STEPS = 3
DIVIDED = Layout(
    "v3",
    data=2,
    micro_batch=2,
    zero=3,
    more=(("zero_optimization", {"stage": 3, "stage3_param_persistence_threshold": 0}),),
)


@pytest.mark.parametrize(
    "layout",
    [DIVIDED, replace(DIVIDED, recompute=True), replace(DIVIDED, tensor=2, sequence_parallel=True)],
    ids=["data", "checkpointed", "tensor"],
)
def test_dividing_every_parameter_changes_nothing(layout: Layout) -> None:
    expected, found = run_alone("v3", steps=STEPS), run_layout(layout, STEPS)
    assert found.losses == pytest.approx(expected.losses, rel=1e-5)  # fp32 in another order of summation
    assert found.norms == pytest.approx(expected.norms, rel=1e-4)
    for name, parameter in expected.parameters.items():
        # Adam's first steps are of size lr wherever a gradient is not nearly zero.
        torch.testing.assert_close(found.parameters[name], parameter, rtol=1e-3, atol=2e-4, msg=name)
