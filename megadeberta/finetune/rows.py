"""One labelled example of each kind of task, as its reader gives it: texts and labels, no tokens yet. Never torch."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True)
class TextRow:
    """A text, or a pair of texts, that gets one label or one number."""

    uid: str
    """For the predictions."""
    text: str
    pair: str | None = None
    label: str | float | None = None
    """A number where the task is a regression; None = not labelled."""
    group: str = ""
    """What the row is part of: a question of several rows, the genre of a sentence pair."""
    candidate: str = ""
    """Where the rows of a group are answers to choose from: this one's text."""
    answers: tuple[str, ...] = ()
    """Beside ``candidate``: the right answers of the group."""


@dataclass(frozen=True)
class TokenRow:
    """Words with a tag each."""

    uid: str
    words: tuple[str, ...]
    tags: tuple[str, ...] | None = None
    """As many as words; None = not labelled."""


@dataclass(frozen=True)
class ChoiceRow:
    """One of several pairs of texts is right."""

    uid: str
    choices: tuple[tuple[str, str], ...]
    """What is read for each choice: the context, and the question with this answer."""
    label: int | None = None
    """Number of the right one, from 0; None = not labelled."""
    group: str = ""


@dataclass(frozen=True)
class SpanRow:
    """A question whose answer is a piece of the context, or is not in it."""

    uid: str
    question: str
    context: str
    answers: tuple[str, ...] = ()
    """All right answers; none = the context does not say."""
    start: int | None = None
    """Character at which the first of ``answers`` begins."""
    labelled: bool = True


Row = TextRow | TokenRow | ChoiceRow | SpanRow


@dataclass(frozen=True)
class Splits:
    """The parts of a labelled set."""

    train: Sequence[Row]
    dev: Mapping[str, Sequence[Row]]
    """By name; the first decides which epoch is best. A set with one has it under the name "dev"."""
    test: Mapping[str, Sequence[Row]] = field(default_factory=dict)
    """Whether labelled or not."""


@dataclass(frozen=True)
class Prediction:
    """What a model says to one row."""

    value: str | float | int | tuple[str, ...]
    """Label, number, tags, number of the choice, or answer ("" = none in the context)."""
    scores: tuple[float, ...] = ()
    """Probability of each label or choice in order; of a span, of "no answer" alone; none for numbers and tags."""
