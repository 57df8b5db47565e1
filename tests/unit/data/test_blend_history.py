"""Weights of a blend, and what happens when they change in the middle of a run."""

from typing import Any

import numpy as np
import pytest

from megadeberta.config.batches import BatchSizes
from megadeberta.config.blend import BlendSegment
from megadeberta.config.data import DataConfig
from megadeberta.data.blend import Blend
from megadeberta.data.blend_history import SourceFacts, Stretch, continue_blend, describe_change, fractions_of
from megadeberta.errors import CheckpointError, ConfigError

FACTS = {
    "en": SourceFacts("content of en", 1_000_000, 2000),
    "de": SourceFacts("content of de", 10_000, 20),
    "fr": SourceFacts("content of fr", 100_000, 200),
}
BATCH = 10


def _data(temperature: float | None = None, **sources: dict[str, Any]) -> DataConfig:
    train = {name: {"prefix": name, **values} for name, values in sources.items()}
    return DataConfig.model_validate({"train": train, "temperature": temperature, "tokenizer": "spm.model"})


def _continue(
    data: DataConfig, saved: tuple[BlendSegment, ...] = (), *, step: int = 0, steps: int = 100
) -> tuple[BlendSegment, ...]:
    facts = {name: FACTS[name] for name in data.train_prefixes}
    return continue_blend(data, facts, saved=saved, stretch=Stretch(step * BATCH, steps * BATCH, BatchSizes((), BATCH)))


def _fractions(data: DataConfig, **options: int) -> dict[str, float]:
    return fractions_of(_continue(data, **options)[-1])


def test_weights_are_relative() -> None:
    assert _fractions(_data(en={"weight": 6}, de={"weight": 2})) == pytest.approx({"de": 0.25, "en": 0.75})


def test_without_weights_the_sizes_decide() -> None:
    expected = {"de": 1 / 111, "en": 100 / 111, "fr": 10 / 111}
    assert _fractions(_data(en={}, de={}, fr={})) == pytest.approx(expected)


def test_a_temperature_takes_a_root_of_the_sizes() -> None:
    sizes = {name: FACTS[name].tokens ** (1 / 2.5) for name in FACTS}
    expected = {name: size / sum(sizes.values()) for name, size in sizes.items()}
    assert _fractions(_data(2.5, en={}, de={}, fr={})) == pytest.approx(expected)


def test_epochs_and_tokens_are_budgets_of_the_whole_run() -> None:
    epochs = _fractions(_data(en={"epochs": 0.5}, de={"epochs": 10}), steps=120)
    assert epochs == pytest.approx({"en": 1000 / 1200, "de": 200 / 1200})
    tokens = _fractions(_data(en={"tokens": 500_000}, de={"tokens": 100_000}), steps=120)
    assert tokens == pytest.approx(epochs)
    segments = _continue(_data(en={"epochs": 0.5}, de={"epochs": 10}), steps=120)
    assert Blend(segments).taken(1200) == {"en": 1000, "de": 200}


def test_a_run_longer_than_its_budgets_is_refused_with_the_step_where_they_end() -> None:
    data = _data(en={"epochs": 0.5}, de={"epochs": 10})
    assert _continue(data, steps=120)
    with pytest.raises(ConfigError, match=r"last until step 120, and training\.steps=121; .*set training\.steps=120"):
        _continue(data, steps=121)


def test_a_finished_run_with_budgets_is_not_an_error_when_started_again() -> None:
    data = _data(en={"epochs": 0.5}, de={"epochs": 10})
    segments = _continue(data, steps=120)
    assert _continue(data, segments, step=120, steps=120) == segments
    with pytest.raises(ConfigError, match=r"last until step 120, and training\.steps=130"):
        _continue(data, segments, step=120, steps=130)


def test_the_same_settings_go_on_with_the_same_segments() -> None:
    data = _data(en={"weight": 1}, de={"weight": 1})
    segments = _continue(data)
    assert _continue(data, segments, step=40) == segments
    assert _continue(data, segments, step=40, steps=10_000) == segments


def test_other_weights_begin_where_the_checkpoint_ends_and_no_source_repeats() -> None:
    first = _continue(_data(en={"weight": 3}, de={"weight": 1}))
    changed = _data(en={"weight": 1}, de={"weight": 3})
    segments = _continue(changed, first, step=5)
    assert [segment.first_sample for segment in segments] == [0, 50]
    assert segments[0] == first[0]
    assert describe_change(*segments) == "de 0.250 -> 0.750, en 0.750 -> 0.250"
    blend = Blend(segments)
    sources, ordinals = blend.locate(np.arange(150))
    assert np.array_equal(sources[:50], Blend(first).locate(np.arange(50))[0])
    for number in range(len(blend.names)):
        own = ordinals[sources == number]
        assert own.tolist() == list(range(len(own)))
    assert abs(np.count_nonzero(sources[50:] == blend.names.index("de")) - 75) <= 2


def test_resuming_twice_from_one_checkpoint_gives_the_same() -> None:
    first = _continue(_data(en={"weight": 3}, de={"weight": 1}))
    changed = _data(en={"weight": 1}, de={"weight": 3})
    once = _continue(changed, first, step=5)
    assert _continue(changed, first, step=5) == once
    assert _continue(changed, once, step=8) == once
    assert _continue(changed, once, step=5) == once


def test_a_change_that_gave_no_sample_is_replaced() -> None:
    first = _continue(_data(en={"weight": 3}, de={"weight": 1}))
    second = _continue(_data(en={"weight": 1}, de={"weight": 1}), first, step=5)
    third = _continue(_data(en={"weight": 1}, de={"weight": 9}), second, step=5)
    assert [segment.first_sample for segment in third] == [0, 50]
    assert fractions_of(third[1])["de"] == pytest.approx(0.9)


def test_a_source_may_be_added_left_out_and_brought_back() -> None:
    first = _continue(_data(en={"weight": 1}, de={"weight": 1}))
    second = _continue(_data(en={"weight": 1}, fr={"weight": 1}), first, step=5)
    third = _continue(_data(en={"weight": 1}, de={"weight": 1}, fr={"weight": 2}), second, step=10)
    assert Blend(third).taken(100) == {"de": 25, "en": 50, "fr": 25}
    sources, ordinals = Blend(third).locate(np.arange(200))
    for number in range(3):
        own = ordinals[sources == number]
        assert own.tolist() == list(range(len(own)))


def test_budgets_after_a_change_count_what_was_taken() -> None:
    first = _continue(_data(en={"weight": 1}, de={"weight": 1}))
    changed = _data(en={"epochs": 1}, de={"epochs": 10})
    segments = _continue(changed, first, step=10)
    assert fractions_of(segments[-1]) == pytest.approx({"de": 150 / 2100, "en": 1950 / 2100})
    with pytest.raises(ConfigError, match=r"data\.train\.de: its budget of epochs=2\.5 is used up: .* 2\.50 times"):
        _continue(_data(en={"epochs": 1}, de={"epochs": 2.5}), first, step=10)


def test_another_token_file_under_a_known_name_is_refused() -> None:
    first = _continue(_data(en={"weight": 1}, de={"weight": 1}))
    source = first[0].sources["de"].model_copy(update={"content": "something else"})
    saved = (first[0].model_copy(update={"sources": {**first[0].sources, "de": source}}),)
    with pytest.raises(CheckpointError, match=r"data\.train\.de is the token file content of .* put the token files"):
        _continue(_data(en={"weight": 1}, de={"weight": 1}), saved, step=5)


def test_a_known_token_file_under_another_name_is_refused() -> None:
    first = _continue(_data(en={"weight": 1}, de={"weight": 1}))
    source = first[0].sources["de"].model_copy(update={"content": "content of fr"})
    saved = (first[0].model_copy(update={"sources": {"en": first[0].sources["en"], "german": source}}),)
    with pytest.raises(CheckpointError, match=r"data\.train\.fr is the token file that the checkpoint calls german"):
        _continue(_data(en={"weight": 1}, fr={"weight": 1}), saved, step=5)
