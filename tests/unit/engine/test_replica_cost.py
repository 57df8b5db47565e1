"""The bar of comparing replicas: at most 1 % of a step, in bytes, which no load of the machine changes."""

from replica_cost import EVERY, build, moved_bytes


def test_hashes_of_every_tenth_step_move_at_most_one_percent_of_the_bytes_of_ten_steps() -> None:
    compare, step, parameters = build(hidden=256, layers=4, batch=16)
    hashed, moved = moved_bytes(compare), moved_bytes(step)
    assert 4 * parameters <= hashed <= 2 * 4 * parameters, "one pass over the weights, and sums of columns"
    assert hashed <= 0.01 * EVERY * moved
