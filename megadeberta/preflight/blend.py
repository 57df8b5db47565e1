"""The blend of a run before it starts: what its newest checkpoint says, and what the recipe makes of that."""

from collections.abc import Sequence
from dataclasses import dataclass

from megadeberta.config.blend import BlendSegment
from megadeberta.config.run import RunConfig
from megadeberta.config.spikes import sample_after
from megadeberta.data.blend import Blend
from megadeberta.data.blend_history import Facts, Stretch, continue_blend, fractions_of
from megadeberta.preflight.resume import expected_checkpoint


@dataclass(frozen=True)
class SourcePlan:
    """A source of the training data at the end of the run."""

    name: str
    tokens: int
    fraction: float
    """Of the samples, from where the run stands."""
    epochs: float
    """How often the whole run meets each of its sequences; those before a change of the weights included."""


def continued_blend(
    config: RunConfig, facts: Facts, saved: Sequence[BlendSegment], sample: int
) -> tuple[BlendSegment, ...]:
    """The segments of a run whose next sample is ``sample``; none where ``data.train`` is one prefix.

    Raises:
        CheckpointError, ConfigError: see ``continue_blend``.
    """
    if not config.data.is_blend:
        return ()
    batches = config.batches
    stretch = Stretch(sample, batches.samples(config.training.steps), batches)
    return continue_blend(config.data, facts, saved=saved, stretch=stretch)


def planned_blend(config: RunConfig, facts: Facts) -> tuple[BlendSegment, ...]:
    """The same from the checkpoint that a start would take, as far as that can be said without verifying it.

    Raises:
        CheckpointError, ConfigError: see ``continue_blend``.
    """
    saved, sample = _newest(config)
    return continued_blend(config, facts, saved, sample)


def plan_sources(config: RunConfig, facts: Facts, segments: Sequence[BlendSegment]) -> list[SourcePlan]:
    """One line per source of the training data."""
    samples = config.batches.samples(config.training.steps)
    fractions = fractions_of(segments[-1]) if segments else {"": 1.0}
    taken = Blend(segments).taken(samples) if segments else {"": samples}
    return [
        SourcePlan(name, fact.tokens, fractions[name], taken[name] / fact.sequences) for name, fact in facts.items()
    ]


def _newest(config: RunConfig) -> tuple[Sequence[BlendSegment], int]:
    found = expected_checkpoint(config)
    if found is None:
        return (), 0
    manifest = found[1]
    spikes, position = manifest.run.spikes, config.batches.samples(manifest.step)
    return manifest.run.blend, sample_after(position, spikes.windows if spikes else ())
