"""Cleaning by its definition, and what a preparation shows: the plot and the progress line."""

import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from rich.console import Console

from megadeberta.data_prep import progress
from megadeberta.data_prep.cleaning import clean
from megadeberta.data_prep.length_plot import plot_lengths, round_ticks

_CONTROL = re.compile("[\x00-\x08\x0e-\x1b\x7f-\x84\x86-\x9f\ufeff]")
_ODD = (
    "ab  \n\r\t\v\f\x00\x07\x1b\x1c\x1f\x7f\x85\x9f\xa0\xad\u1680\u2003\u200b\u200c\u2028\u2029\u3000\ufeff\U0001f600 "
)


def by_definition(text: str) -> str:
    """Without control characters, every run of whitespace one space, nothing at the ends."""
    return " ".join(_CONTROL.sub("", text).split())


@given(st.one_of(st.text(), st.text(alphabet=_ODD), st.text(alphabet=" \nab")))
def test_cleaning_is_its_definition(text: str) -> None:
    assert clean(text) == by_definition(text)
    assert clean(clean(text)) == clean(text)


def test_every_character_of_the_first_plane_is_cleaned_by_definition() -> None:
    for code in range(0x10000):
        if not 0xD800 <= code < 0xE000:
            text = f"a {chr(code)}\n\n{chr(code)} b"
            assert clean(text) == by_definition(text), hex(code)


def test_the_plot_is_a_picture_with_bars_and_a_median(tmp_path: Path) -> None:
    plot_lengths(tmp_path, np.array([1, 10, 10, 10, 100, 5000]))
    with Image.open(tmp_path / "lengths.png") as picture:
        pixels = np.asarray(picture.convert("RGB")).reshape(-1, 3).astype(int)  # [pixels, 3]
    assert picture.size == (840, 480)
    for colour in ((0x1F, 0x77, 0xB4), (0xFF, 0x7F, 0x0E), (255, 255, 255)):
        assert (np.abs(pixels - colour).max(axis=1) < 40).any(), colour  # scaling down mixes colours at edges


def test_a_plot_of_one_document_of_one_token_can_be_drawn(tmp_path: Path) -> None:
    plot_lengths(tmp_path, np.array([1]))
    assert (tmp_path / "lengths.png").stat().st_size > 1000


@pytest.mark.parametrize("largest", [1, 2, 7, 12, 99, 350, 48_116])
def test_ticks_are_round_numbers_up_to_the_largest(largest: int) -> None:
    ticks = round_ticks(largest)
    assert ticks[0] == 0 and ticks[-1] <= largest and 2 <= len(ticks) <= 10


def test_a_log_line_has_fraction_speed_tokens_and_time_left(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    with progress.Stages(Console(width=200)) as stages:
        stages.begin("encoding", total=100_000_000)
        now[0] = 20.0
        stages.advance(25_000_000, tokens=6_000_000)
    assert capsys.readouterr().out.splitlines()[-1] == "encoding: 25%, 1.2 MB/s, 300k tokens/s, 0:01:00 left"
