"""The average of the weights against a loop over its formula."""

import torch
from torch import nn

from megadeberta.config.training import OptimizerConfig
from megadeberta.engine.optimizer import build_optimizer
from megadeberta.engine.weight_average import keep_average


def test_each_update_that_changes_something_moves_the_average() -> None:
    model = nn.Linear(3, 2)
    optimizer = build_optimizer(model, OptimizerConfig(lr=0.1), offloaded=False)
    keep_average(optimizer, 0.9)
    expected: torch.Tensor | None = None
    for step in range(5):
        model(torch.ones(1, 3) * step).sum().backward()
        optimizer.found_inf = torch.tensor(float(step == 2))
        optimizer.step()
        weight = model.weight.detach().double()
        if expected is None:
            expected = weight.clone()
        elif step != 2:
            expected = 0.9 * expected + 0.1 * weight
        torch.testing.assert_close(optimizer.state[model.weight]["average"].double(), expected, rtol=1e-6, atol=1e-7)


def test_the_part_that_an_update_leaves_alone_keeps_its_average() -> None:
    model = nn.Linear(3, 2)
    optimizer = build_optimizer(model, OptimizerConfig(lr=0.1), offloaded=False)
    keep_average(optimizer, 0.5)
    averages = []
    for is_active in (True, True, False):
        for group in optimizer.param_groups:
            group["active"] = is_active
        model(torch.ones(1, 3)).sum().backward()
        optimizer.step()
        averages.append(optimizer.state[model.weight]["average"].clone())
    assert not torch.equal(averages[0], averages[1])
    assert torch.equal(averages[1], averages[2])
