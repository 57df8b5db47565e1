"""Whole training steps, optimizer included, and a profile of one: what takes the time that the goal does not have."""

import gc
import time
from collections.abc import Iterator
from typing import Any

import torch
from stopwatch import gemm_rate, peak_memory

from gpu.finding import Finding, WrongResultError
from gpu.profiling import record, summarise, waiting_lines
from gpu.scale import Scale
from gpu.trainers import Trainer, built_trainer
from megadeberta.engine.build import working_type
from megadeberta.layers.flops import run_flops_per_token
from megadeberta.observability.device_peaks import device_peak_flops

WARM_UP, FEWEST, MOST, TIMED_SECONDS = 3, 3, 20, 4.0
PROFILED = 3
MOST_CHANGE = 0.5
"""Of the loss within the measurement, as a fraction."""


def measure(parameters: dict[str, Any]) -> Iterator[Finding]:
    """Time, tokens per second, MFU and peak memory; then a profile, where one is asked for."""
    gc.collect()  # the engine of the measurement before is full of cycles
    scale = Scale.of(parameters)
    device = torch.device(scale.device)
    started = time.perf_counter()
    with peak_memory(device) as peak, built_trainer(scale, parameters["model"], parameters["variant"]) as trainer:
        built = time.perf_counter() - started
        trainer.step()
        first = trainer.loss()
        seconds = time_steps(trainer, device)
        last, most = trainer.loss(), peak()
        if not abs(last - first) <= MOST_CHANGE * first:  # nan included
            raise WrongResultError(f"the loss went from {first} to {last} on one batch, in the warm-up")
        values = {
            "attention": trainer.attention,
            "tokens": trainer.tokens,
            "step_ms": 1e3 * seconds,
            "tokens_per_s": trainer.tokens / seconds,
            "peak_gib": most,
            "built_s": built,
            "first_loss": first,
            "last_loss": last,
        }
        yield Finding(values | mfu(trainer, seconds, device))
        if parameters["profile"]:
            yield profile(trainer, device)


def time_steps(trainer: Trainer, device: torch.device) -> float:
    """Seconds of one step, from the first launch of the first to the end of the last; on a CPU, of one."""
    count = 1
    if device.type == "cuda":
        for _ in range(WARM_UP):
            once = timed(trainer, 1)
        count = max(FEWEST, min(MOST, int(TIMED_SECONDS / once)))
    return timed(trainer, count) / count


def timed(trainer: Trainer, count: int) -> float:
    """Seconds of so many steps, and of reading the loss of the last, which waits for the device."""
    started = time.perf_counter()
    for _ in range(count):
        trainer.step()
    trainer.loss()
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()
    return time.perf_counter() - started


def mfu(trainer: Trainer, seconds: float, device: torch.device) -> dict[str, float | None]:
    """Useful operations against the data sheet, and against a large matrix product in the same process."""
    config = trainer.config
    flops = run_flops_per_token(config.model, config.objective, sequence_length=config.data.sequence_length)
    rate = flops * trainer.tokens / seconds
    sheet = device_peak_flops(torch.cuda.get_device_name(device)) if device.type == "cuda" else None
    products = gemm_rate(device, working_type(config.engine.precision))
    return {"tflops": rate / 1e12, "mfu": rate / sheet if sheet else None, "mfu_of_products": rate / products}


def profile(trainer: Trainer, device: torch.device) -> Finding:
    """Of some steps on end, as in training, where the host may run ahead."""

    def steps() -> None:
        for _ in range(PROFILED):
            trainer.step()

    values = summarise(record(steps, device), runs=PROFILED)
    if device.type == "cuda":
        values["waiting_lines"] = waiting_lines(trainer.step)
    return Finding(values, about="profile", kind="profile")
