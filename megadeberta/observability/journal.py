"""What a run tells: progress lines, metrics.jsonl, TensorBoard and the loss curve, from rank 0 only."""

import logging
import math
import os
import time
from collections.abc import Mapping, Sequence
from typing import Any, Protocol, Self

import torch

from megadeberta.config.redact import recipe_json, redact
from megadeberta.config.run import RunConfig
from megadeberta.config.spikes import PassedOver
from megadeberta.config.terminal import line_width, wrap_items
from megadeberta.config.waiting import pause_after
from megadeberta.layers.flops import run_flops_per_token
from megadeberta.layers.objectives import objective_of
from megadeberta.layers.terms import baselines, term
from megadeberta.observability.curve import Curve, CurveDrawer
from megadeberta.observability.device_peaks import device_peak_flops
from megadeberta.observability.metrics import (
    KERNELS_FILE,
    METRICS_FILE,
    RECIPE_FILE,
    SAVED,
    SOURCE_MARK,
    TENSORBOARD_FOLDER,
    MetricsFile,
    read_metrics,
)
from megadeberta.observability.phase_times import MEMORY, SAVE, VALIDATION, PhaseTimes, time_values
from megadeberta.observability.progress import Rates, Speedometer, format_progress, format_terms, format_total
from megadeberta.observability.tracker import TrackedRun, Tracker, open_tracker, tensorboard_tracker
from megadeberta.storage import write_file

log = logging.getLogger(__name__)


class TermMeans(Protocol):
    """Named means over a global batch; see ``engine.terms.Terms``."""

    @property
    def counts(self) -> Mapping[str, int]: ...

    @property
    def means(self) -> Mapping[str, float]: ...


class StepFacts(Protocol):
    """One optimizer step over all ranks; see ``engine.launched.StepResult``."""

    @property
    def loss(self) -> float: ...

    @property
    def terms(self) -> TermMeans: ...

    @property
    def grad_norms(self) -> Mapping[str, float]: ...

    @property
    def applied(self) -> bool: ...

    @property
    def grad_norm(self) -> float: ...

    @property
    def phases(self) -> Mapping[str, float]: ...


class ValidationFacts(Protocol):
    """One validation over all ranks; see ``engine.launched.EvalResult``."""

    @property
    def loss(self) -> float: ...

    @property
    def terms(self) -> TermMeans: ...

    @property
    def sources(self) -> Mapping[str, "ValidationFacts"]: ...


class Journal:
    """Writes nothing: what ranks other than 0 have."""

    def step(self, step: int, facts: StepFacts, *, lr: float, seconds: float, memory: int | None = None) -> None:
        """Record optimizer step ``step`` (counted from 1), which took ``seconds``.

        Args:
            memory: most bytes on this rank's GPU; None without one.
        """

    def refused(self, step: int, reason: str, *, samples: range, seconds: float) -> None:
        """Record that step ``step`` changed nothing, as something was not finite, and is passed over."""

    def validation(self, step: int, facts: ValidationFacts, *, seconds: float = 0.0) -> None:
        """Record a validation after ``step``."""

    def saved(self, step: int, *, seconds: float, committed: bool) -> None:
        """Record how long the checkpoint of ``step`` took, and whether it is there."""

    def go_back(self, step: int, windows: Sequence[PassedOver]) -> None:
        """The run goes on from ``step`` and has passed over these samples: later lines of the metrics are replaced."""

    def note(self, text: str) -> None:
        """One line for the reader of the log."""

    def warn(self, text: str) -> None:
        """The same of what the reader should look at."""

    def kernels(self, taken: str, *, resumed: bool) -> None:
        """Record the kernels of this start, and say if a resumed run had others before."""

    def close(self) -> None:
        """Flush and close the files."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


class WritingJournal(Journal):
    """The journal of rank 0."""

    def __init__(
        self,
        config: RunConfig,
        *,
        metrics: MetricsFile,
        trackers: Sequence[Tracker],
        speedometer: Speedometer,
        unigram: float | None,
    ) -> None:
        self._curve = CurveDrawer(_curve(config, unigram)) if config.logging.plot else None
        self._config = config
        self._metrics = metrics
        self._trackers = trackers
        self._speedometer = speedometer
        self._unigram = unigram
        self._times = PhaseTimes()
        self._width = line_width(os.environ)
        self._started = time.monotonic()
        self._shown: float | None = None
        """When the last step was shown."""

    def step(self, step: int, facts: StepFacts, *, lr: float, seconds: float, memory: int | None = None) -> None:
        tokens = self._config.batches.at(step - 1) * self._config.data.sequence_length
        values = {
            "loss": facts.loss,
            **_means(facts.terms),
            "grad_norm": facts.grad_norm,
            **{f"grad_norm_{part}": norm for part, norm in facts.grad_norms.items() if part},
            "lr": lr,
            **_targets(facts.terms),
            "applied": facts.applied,
            "tokens_per_second": tokens / max(seconds, 1e-9),
            **time_values(facts.phases),
            **({} if memory is None else {MEMORY: memory / 2**30}),
        }
        self._metrics.write(step, values)
        self._times.add_step(seconds, facts.phases)
        self._speedometer.add_step(seconds)
        is_due = step % self._config.logging.interval == 0 or step == self._config.training.steps
        if not is_due and not self._is_awaited():
            return
        self._shown = time.monotonic()
        rates = self._speedometer.read()
        log.info("%s", self._progress_line(step, facts, lr, rates, values.get(MEMORY)))
        if not is_due:
            return
        beside = _baseline_values(_means(facts.terms), self._unigram)
        mfu = math.nan if rates.mfu is None else rates.mfu
        for tracker in self._trackers:
            tracker.log(step, values | beside | {"mfu": mfu}, prefix="train")

    def _is_awaited(self) -> bool:
        """Whether whoever waits should see that it runs: at the first step, and every few seconds in the beginning."""
        now = time.monotonic()
        return self._shown is None or now - self._shown >= pause_after(now - self._started)

    def refused(self, step: int, reason: str, *, samples: range, seconds: float) -> None:
        facts = {"refused": reason, "first_sample": samples.start, "stop_sample": samples.stop}
        self._metrics.write(step, facts)
        self._speedometer.add_step(seconds)
        first, last = samples.start, samples.stop - 1
        log.warning("step %d: %s; it is passed over, with samples %d to %d", step, reason, first, last)

    def validation(self, step: int, facts: ValidationFacts, *, seconds: float = 0.0) -> None:
        if not facts.terms.means:
            return
        means = _means(facts.terms)
        values: dict[str, Any] = {f"valid_{name}": value for name, value in {"loss": facts.loss, **means}.items()}
        values |= {f"valid_{name}": count for name, count in _targets(facts.terms).items()}
        found_losses = (mean for name, mean in means.items() if term(name).predicts_tokens and not math.isnan(mean))
        token_loss = next(found_losses, None)
        if token_loss is not None:
            values["valid_perplexity"] = math.exp(min(token_loss, 700.0))
        if self._unigram is not None:
            values["unigram_cross_entropy"] = self._unigram
        for name, source in facts.sources.items():
            found = {"loss": source.loss, **source.terms.means}
            values |= {f"valid_{key}{SOURCE_MARK}{name}": value for key, value in found.items()}
        self._times.add_between(VALIDATION, seconds)
        self._metrics.write(step, values | time_values({VALIDATION: seconds}))
        beside = baselines(means, self._unigram)
        perplexity = [f"perplexity {values['valid_perplexity']:.1f}"] if token_loss is not None else []
        total, shown = format_total(facts.loss, means, beside), format_terms(means, beside)
        log.info("%s", wrap_items([f"step {step} validation {total}", *perplexity, *shown], self._width))
        if facts.sources:
            parts = " ".join(f"{name} {source.loss:.3f}" for name, source in facts.sources.items())
            log.info("step %d validation loss of each source: %s", step, parts)
        if spent := self._times.read():
            log.info("%s", wrap_items([f"step {step} time: {spent[0]}", *spent[1:]], self._width))
        for tracker in self._trackers:
            tracker.log(step, values | _baseline_values(means, self._unigram), prefix="valid")
            tracker.flush()
        if self._curve is not None:
            self._curve.draw()

    def saved(self, step: int, *, seconds: float, committed: bool) -> None:
        self._times.add_between(SAVE, seconds)
        values = time_values({SAVE: seconds})
        self._metrics.write(step, values | {SAVED: committed})
        for tracker in self._trackers:
            tracker.log(step, values, prefix="train")

    def go_back(self, step: int, windows: Sequence[PassedOver]) -> None:
        self._metrics.close()
        self._metrics = MetricsFile.resume(self._metrics.path, step)
        for window in windows:
            # Behind the checkpoint, so that a start from it, which meets the spike again, does not have the line twice.
            facts = {"first_sample": window.first_sample, "stop_sample": window.stop_sample}
            spike = {"spike_step": window.step, "spike_loss": window.loss, "spike_median": window.median}
            self._metrics.write(step + 1, {f"passed_over_{name}": value for name, value in facts.items()} | spike)
        self._speedometer.go_back(step)
        for tracker in self._trackers:
            tracker.go_back()

    def note(self, text: str) -> None:
        log.info("%s", text)

    def warn(self, text: str) -> None:
        log.warning("%s", text)

    def kernels(self, taken: str, *, resumed: bool) -> None:
        path = self._config.training.output_dir / KERNELS_FILE
        before = path.read_text(encoding="utf-8", errors="replace").strip() if resumed and path.exists() else taken
        if before != taken:
            log.warning("attention was %s and is %s from here on: the same up to rounding", before, taken)
        write_file(path, f"{taken}\n".encode())

    def close(self) -> None:
        if self._curve is not None:
            self._curve.draw_at_exit()
        self._metrics.close()
        for tracker in self._trackers:
            tracker.close()

    def _progress_line(self, step: int, facts: StepFacts, lr: float, rates: Rates, memory: float | None) -> str:
        line = format_progress(
            step,
            self._config.training.steps,
            loss=facts.loss,
            terms=_means(facts.terms),
            baselines=baselines(_means(facts.terms), self._unigram),
            gradient_norm=facts.grad_norm,
            lr=lr,
            rates=rates,
            memory=memory,
            width=self._width,
        )
        return line if facts.applied else f"{line} (fp16 overflow: step skipped)"


def _curve(config: RunConfig, unigram: float | None) -> Curve:
    losses = list(objective_of(config.objective).loss_weights(config.objective))
    return Curve(str(config.training.output_dir), config.name, losses, unigram, config.plugins)


def open_journal(
    config: RunConfig,
    *,
    done: int,
    unigram: float | None,
    world_size: int,
    device: torch.device,
    is_writer: bool,
    summary: Sequence[str] = (),
) -> Journal:
    """The journal of this rank, going on after ``done`` steps. Prints the summary and stores the resolved recipe.

    Args:
        unigram: nats a token of a model that knows word frequencies only; shown beside the validation loss.
    """
    if not is_writer:
        return Journal()
    output, length = config.training.output_dir, config.data.sequence_length
    write_file(output / RECIPE_FILE, f"{recipe_json(config)}\n".encode())
    for line in summary:
        log.info("%s", line)
    speedometer = Speedometer(
        total_steps=config.training.steps,
        batches=config.batches,
        sequence_length=length,
        flops_per_token=run_flops_per_token(config.model, config.objective, sequence_length=length),
        peak_flops=_peak_flops(config, device, world_size),
        done=done,
    )
    ranks = "1 rank" if world_size == 1 else f"{world_size} ranks"
    log.info("starting after step %d of %d on %s, %s", done, config.training.steps, ranks, device)
    path = output / METRICS_FILE
    metrics = MetricsFile.resume(path, done) if done else MetricsFile.create(path)
    return WritingJournal(
        config,
        metrics=metrics,
        trackers=_open_trackers(config, done=done, unigram=unigram),
        speedometer=speedometer,
        unigram=unigram,
    )


def _open_trackers(config: RunConfig, *, done: int, unigram: float | None) -> list[Tracker]:
    """Those of the recipe. What a resumed run has logged and a tracker has lost comes from the metrics file."""
    output, settings = config.training.output_dir, config.logging
    run = TrackedRun(config.name, settings.project, output, done, redact(config.model_dump(mode="json")))
    trackers = [open_tracker(name, run) for name in settings.trackers]
    for record in read_metrics(output / METRICS_FILE) if trackers and done else ():
        is_validation = "valid_loss" in record
        if "loss" in record and record["step"] % settings.interval:
            continue
        terms = {key.removeprefix("valid_" if is_validation else ""): value for key, value in record.items()}
        for tracker in trackers:
            tracker.log(
                record["step"],
                {key: value for key, value in record.items() if key not in ("step", SAVED)}
                | _baseline_values(terms, unigram),
                prefix="valid" if is_validation else "train",
            )
    board = tensorboard_tracker(output / TENSORBOARD_FOLDER, done=done) if settings.tensorboard else None
    return trackers if board is None else [board, *trackers]


def _means(terms: TermMeans) -> dict[str, float]:
    """Of every term that counted something; NaN for those that stand beside a loss which did."""
    found = terms.means
    names = [name for name in {**terms.counts, **found} if name in found or term(name).beside in found]
    return {name: found.get(name, math.nan) for name in names}


def _baseline_values(means: Mapping[str, float | None], unigram: float | None) -> dict[str, float]:
    return {f"{name}_baseline": value for name, value in baselines(means, unigram).items()}


def _targets(terms: TermMeans) -> dict[str, int]:
    """How many targets each loss was averaged over: ``mlm_targets`` for ``mlm_loss``."""
    return {term(name).targets_name: count for name, count in terms.counts.items() if term(name).is_loss and count}


def _peak_flops(config: RunConfig, device: torch.device, world_size: int) -> float | None:
    """Peak of all ranks together: as configured, else from the table of GPUs; None on a CPU."""
    if config.logging.peak_tflops is not None:
        return config.logging.peak_tflops * 1e12 * world_size
    if device.type == "cuda":
        peak = device_peak_flops(torch.cuda.get_device_name(device))
        return None if peak is None else peak * world_size
    return None  # what a shared CPU could do changes within a run by a factor of two
