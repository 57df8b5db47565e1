"""The progress line: one a step, from one rank.

``step 1200/10000 loss 6.412 (6.574) acc 0.182 grad 0.94 lr 1.0e-04 tok/s 41.3k mfu 38.1 % eta 2h03m``; a run with
several losses shows each of them: ``loss 6.493 mlm 2.311 (6.574) acc 0.540 rtd 0.084 (0.323) prec 0.710 rec 0.330
grad ...``. In brackets is the baseline of a loss (``layers.terms.baselines``).
"""

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

from megadeberta.config.batches import BatchSizes
from megadeberta.config.terminal import wrap_items
from megadeberta.layers.terms import TERMS


@dataclass(frozen=True)
class Rates:
    """How fast the run is. ``mfu``: useful operations over the peak of all ranks' devices; None if that is unknown."""

    tokens_per_second: float
    mfu: float | None
    eta_seconds: float


class Speedometer:
    """Tokens a second since the last reading, and the time left.

    Speed counts the seconds of the steps themselves. The time left goes by the clock, so that validation, checkpoints
    and waiting for data are part of it.
    """

    def __init__(
        self,
        *,
        total_steps: int,
        batches: BatchSizes,
        sequence_length: int,
        flops_per_token: float,
        peak_flops: float | None,
        done: int = 0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Args:
        batches: sequences of every step, of all ranks together.
        peak_flops: operations a second of all ranks' devices together; None if unknown.
        done: steps of earlier starts.
        """
        self._batches, self._length = batches, sequence_length
        self._all_sequences = batches.samples(total_steps)
        self._flops_per_token = flops_per_token
        self._peak_flops = peak_flops
        self._clock = clock
        self._done = done
        self._read_at = clock()
        self._steps, self._seconds = 0, 0.0
        self._readings = 0
        self._pace = 0.0  # smoothed seconds a sequence, by the clock

    def add_step(self, seconds: float) -> None:
        """One more optimizer step, which took ``seconds``."""
        self._steps += 1
        self._seconds += seconds

    def go_back(self, done: int) -> None:
        """The steps after ``done`` are made once more."""
        self._done, self._steps, self._seconds = done, 0, 0.0

    def read(self) -> Rates:
        """Rates of the steps since the last reading, of which there must be one at least."""
        now = self._clock()
        done = self._batches.samples(self._done)
        sequences = self._batches.samples(self._done + self._steps) - done
        tokens_per_second = sequences * self._length / max(self._seconds, 1e-9)
        fresh = (now - self._read_at) / sequences
        # The newest reading weighs a tenth, so that a validation does not jerk it. The first one is forgotten at once:
        # it holds what only a first step does.
        self._readings += 1
        self._pace = fresh if self._readings <= 2 else 0.9 * self._pace + 0.1 * fresh
        self._done += self._steps
        self._read_at, self._steps, self._seconds = now, 0, 0.0
        mfu = tokens_per_second * self._flops_per_token / self._peak_flops if self._peak_flops else None
        return Rates(tokens_per_second, mfu, self._pace * (self._all_sequences - done - sequences))


def format_progress(
    step: int,
    total_steps: int,
    *,
    loss: float,
    terms: Mapping[str, float],
    baselines: Mapping[str, float],
    gradient_norm: float,
    lr: float,
    rates: Rates,
    memory: float | None = None,
    width: int | None = None,
) -> str:
    """The progress line, broken between two items where it is longer than ``width``.

    Args:
        terms: means by name; a loss that is all of the total is not shown again.
        memory: GiB on the GPU; None without one.
    """
    parts = [
        f"step {step}/{total_steps}",
        format_total(loss, terms, baselines),
        *format_terms(terms, baselines),
        f"grad {gradient_norm:.2f}",
        f"lr {lr:.1e}",
        f"tok/s {format_count(rates.tokens_per_second)}",
    ]
    if rates.mfu is not None:
        parts.append(f"mfu {100 * rates.mfu:.1f} %")
    if memory is not None:
        parts.append(f"mem {memory:.1f} GiB")
    parts.append(f"eta {format_duration(rates.eta_seconds)}")
    return wrap_items(parts, width)


def format_total(loss: float, terms: Mapping[str, float], baselines: Mapping[str, float]) -> str:
    """``loss 6.412 (6.574)``; the total of several losses has no baseline."""
    losses = _losses(terms)
    return f"loss {_number(loss)}{_beside(losses[0], baselines) if len(losses) == 1 else ''}"


def format_terms(terms: Mapping[str, float], baselines: Mapping[str, float] = MappingProxyType({})) -> list[str]:
    """The terms that a line shows, e.g. ``acc 0.182``; a loss that is all of the total is not shown again.

    A term that is not a number is undefined in this batch, such as the precision of no call: ``prec -``.
    """
    is_total = _losses(terms) if len(_losses(terms)) == 1 else []
    known = {name: TERMS[name].label for name in terms if name in TERMS and name not in is_total}
    return [f"{label} {_number(terms[name])}{_beside(name, baselines)}" for name, label in known.items() if label]


def _losses(terms: Mapping[str, float]) -> list[str]:
    return [name for name in terms if name in TERMS and TERMS[name].is_loss]


def _number(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.3f}"


def _beside(name: str, baselines: Mapping[str, float]) -> str:
    return f" ({baselines[name]:.3f})" if name in baselines else ""


def format_count(value: float) -> str:
    """Three figures and a unit: 874, 41.3k, 1.20M."""
    if not math.isfinite(value):
        return str(value)
    for unit in ("", "k", "M", "G"):
        if abs(value) < 999.5 or unit == "G":
            return f"{value:.0f}" if not unit else f"{value:.{_decimals(value)}f}{unit}"
        value /= 1000
    raise AssertionError("the last unit takes every value")


def format_duration(seconds: float) -> str:
    """Two units: 47s, 12m05s, 2h03m, 3d04h."""
    whole = max(0, round(seconds)) if math.isfinite(seconds) else 0
    minutes, rest = divmod(whole, 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    if days:
        return f"{days}d{hours:02d}h"
    if hours:
        return f"{hours}h{minutes:02d}m"
    return f"{minutes}m{rest:02d}s" if minutes else f"{rest}s"


def _decimals(value: float) -> int:
    return 2 if abs(value) < 9.995 else 1 if abs(value) < 99.95 else 0
