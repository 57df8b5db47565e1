"""The sentence that says what is wrong with values from a file."""

from typing import Any

import pytest
from pydantic import BaseModel, ValidationError, field_validator

from megadeberta.config.first_problem import first_problem


class _Inner(BaseModel):
    ranks: int


class _Outer(BaseModel):
    inner: _Inner
    sizes: list[int] = []
    even: int = 0

    @field_validator("even")
    @classmethod
    def _even(cls, value: int) -> int:
        if value % 2:
            raise ValueError(f"even={value} is odd; add one")
        return value


@pytest.mark.parametrize(
    ("values", "plain", "with_value"),
    [
        ({}, "inner: Field required", "inner={}: Field required"),
        (
            {"inner": {"ranks": "x"}, "even": 3},
            "inner.ranks: Input should be a valid integer, unable to parse string as an integer",
            "inner.ranks='x': Input should be a valid integer, unable to parse string as an integer",
        ),
        (
            {"inner": {"ranks": 1}, "sizes": [1, None]},
            "sizes.1: Input should be a valid integer",
            "sizes.1=None: Input should be a valid integer",
        ),
        ({"inner": {"ranks": 1}, "even": 3}, "even=3 is odd; add one", "even=3 is odd; add one"),
        (
            3,
            "Input should be a valid dictionary or instance of _Outer",
            "Input should be a valid dictionary or instance of _Outer",
        ),
    ],
)
def test_the_first_problem_has_its_place_and_a_check_of_ours_its_own_words(
    values: Any, plain: str, with_value: str
) -> None:
    with pytest.raises(ValidationError) as raised:
        _Outer.model_validate(values)
    assert first_problem(raised.value) == plain
    assert first_problem(raised.value, show_value=True) == with_value
