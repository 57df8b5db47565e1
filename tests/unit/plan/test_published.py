"""The planner's times against step times that others published."""

import statistics

import pytest
from plan_published import planned
from published_steps import TABLES


@pytest.mark.parametrize("name", TABLES)
def test_planned_step_times_are_near_those_of_published_runs(name: str) -> None:
    table = TABLES[name]
    ratios = {row.name: seconds / row.seconds for row, seconds in planned(table)}
    low, high = table.bounds
    assert {row: ratio for row, ratio in ratios.items() if not low <= ratio <= high} == {}
    assert table.median[0] <= statistics.median(ratios.values()) <= table.median[1]


def test_the_rates_that_tables_of_one_gpu_are_calibrated_to_agree() -> None:
    """One constant per GPU type is what ``--gpu`` has: code bases on one type differ, but not by much."""
    from plan_published import calibrated

    from megadeberta.plan.gpus import GPUS

    for kind, letter in (("v100-32", "V100"), ("a100-80", "A100"), ("h100", "H100")):
        for name, table in TABLES.items():
            if name.endswith(letter):
                assert 0.6 < calibrated(table) / GPUS[kind].tflops < 1.5
