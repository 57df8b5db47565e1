"""The weights of a blend: from what the recipe asks for, and from what a run has taken when they change.

A run's blend is a list of segments, and a checkpoint holds that list. Other weights at a resume add a segment that
begins where the checkpoint ends; every source continues in its own order after what it has given.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from megadeberta.config.batches import BatchSizes
from megadeberta.config.blend import BlendSegment, BlendSource, TrainSource
from megadeberta.config.data import DataConfig
from megadeberta.data.blend import Blend, whole_weights
from megadeberta.errors import CheckpointError, ConfigError


@dataclass(frozen=True)
class SourceFacts:
    """What one token file holds."""

    content: str
    """Of its manifest: two token files with the same one give the same samples."""
    tokens: int
    sequences: int
    """Of an epoch."""


Facts = Mapping[str, SourceFacts]


@dataclass(frozen=True)
class Stretch:
    """The part of a run that is to come: samples ``[start, stop)``, and the samples of its steps."""

    start: int
    stop: int
    batches: BatchSizes


def continue_blend(
    data: DataConfig, facts: Facts, *, saved: Sequence[BlendSegment], stretch: Stretch
) -> tuple[BlendSegment, ...]:
    """The segments of a run from what its checkpoint holds, none at the start, and what the recipe asks for now.

    Raises:
        CheckpointError: a source is not the token file it was, or a token file has another name.
        ConfigError: the budgets end before the run does.
    """
    asked = {name: _asked(data, name) for name in facts}
    _check_contents(facts, saved)
    taken = Blend(saved).taken(stretch.start) if saved else {}
    if saved and {name: source.asked for name, source in saved[-1].sources.items()} == asked:
        _check_length(_budgets(data, facts, taken), stretch)
        return tuple(saved)
    weights = whole_weights(_fractions(data, facts, taken, stretch))
    sources = {
        name: BlendSource(weight=weights[name], asked=asked[name], content=facts[name].content)
        for name in sorted(facts)
    }
    # A segment that begins here has given no sample: it is replaced.
    kept = [segment for segment in saved if segment.first_sample < stretch.start]
    return (*kept, BlendSegment(first_sample=stretch.start, sources=sources))


def describe_change(before: BlendSegment, after: BlendSegment) -> str:
    """``en 0.700 -> 0.500, de 0.300 -> 0.500``: fractions of the samples; a source that is not there has none."""
    names = sorted(before.sources.keys() | after.sources.keys())
    old, new = fractions_of(before), fractions_of(after)
    return ", ".join(f"{name} {old.get(name, 0):.3f} -> {new.get(name, 0):.3f}" for name in names)


def fractions_of(segment: BlendSegment) -> dict[str, float]:
    """Each source's fraction of the samples."""
    total = sum(source.weight for source in segment.sources.values())
    return {name: source.weight / total for name, source in segment.sources.items()}


def _source(data: DataConfig, name: str) -> TrainSource:
    assert isinstance(data.train, dict)
    return data.train[name]


def _asked(data: DataConfig, name: str) -> str:
    source = _source(data, name)
    if source.setting is not None:
        return f"{source.setting} {getattr(source, source.setting)!r}"
    return f"temperature {1.0 if data.temperature is None else data.temperature!r}"


def _fractions(data: DataConfig, facts: Facts, taken: Mapping[str, int], stretch: Stretch) -> dict[str, float]:
    sizes = _budgets(data, facts, taken)
    if sizes:
        _check_length(sizes, stretch)
        _check_left(data, facts, taken, sizes)
    elif any(_source(data, name).weight is not None for name in facts):
        sizes = {name: float(_source(data, name).weight or 0.0) for name in facts}
    else:
        # Relative to the largest, so that no power overflows.
        largest = max(fact.tokens for fact in facts.values())
        exponent = 1 / (data.temperature or 1.0)
        sizes = {name: (fact.tokens / largest) ** exponent for name, fact in facts.items()}
    total = math.fsum(sizes.values())
    return {name: size / total for name, size in sizes.items()}


def _budgets(data: DataConfig, facts: Facts, taken: Mapping[str, int]) -> dict[str, float]:
    """Samples that each source may still give; empty where the recipe has no budgets."""
    found: dict[str, float] = {}
    for name, fact in facts.items():
        source = _source(data, name)
        if source.setting not in ("epochs", "tokens"):
            return {}
        epochs = source.epochs if source.epochs is not None else (source.tokens or 0) / fact.tokens
        found[name] = epochs * fact.sequences - taken.get(name, 0)
    return found


def _check_left(data: DataConfig, facts: Facts, taken: Mapping[str, int], budgets: Mapping[str, float]) -> None:
    for name, left in budgets.items():
        if left <= 0:
            source = _source(data, name)
            raise ConfigError(
                f"data.train.{name}: its budget of {source.setting}={getattr(source, source.setting or '')} is used "
                f"up: the run has met its sequences {taken.get(name, 0) / facts[name].sequences:.2f} times; raise the "
                "budget or leave the source out"
            )


def _check_length(budgets: Mapping[str, float], stretch: Stretch) -> None:
    """The last step may end beyond the budgets, as they rarely are a whole number of steps."""
    left = math.fsum(budgets.values())
    batches, whole = stretch.batches, stretch.batches.steps_within(stretch.stop)
    if budgets and stretch.stop - stretch.start >= left + batches.at(whole - 1):
        steps = batches.steps_within(stretch.start + math.ceil(left))
        raise ConfigError(
            f"data.train: the budgets of its sources last until step {steps}, and training.steps="
            f"{whole}; raise the budgets or set training.steps={steps}"
        )


def _check_contents(facts: Facts, saved: Sequence[BlendSegment]) -> None:
    advice = "put the token files back under their names, or choose another training.output_dir"
    known = {name: source.content for segment in saved for name, source in segment.sources.items()}
    names = {content: name for name, content in known.items()}
    for name, fact in facts.items():
        if name in known and known[name] != fact.content:
            raise CheckpointError(
                f"data.train.{name} is the token file {fact.content[:12]}… here and {known[name][:12]}… in the "
                f"checkpoint: its samples would not continue those that were taken; {advice}"
            )
        if name not in known and fact.content in names:
            raise CheckpointError(
                f"data.train.{name} is the token file that the checkpoint calls {names[fact.content]}: under another "
                f"name its samples would come again; {advice}"
            )


def blend_lines(segments: Sequence[BlendSegment], batches: BatchSizes) -> list[str]:
    """What a start says of a blend: where in the run it changed, and its fractions now; nothing without a blend."""
    if not segments:
        return []
    shown = ", ".join(f"{name} {fraction:.4f}" for name, fraction in fractions_of(segments[-1]).items())
    changes = [
        f"blend changed after step {batches.steps_within(after.first_sample)} (sample {after.first_sample}): "
        f"{describe_change(before, after)}"
        for before, after in pairwise(segments)
    ]
    return [*changes, f"fractions of the samples: {shown}"]
