"""What is wanted of a GPU, all of it in one place, and how each number is read from the results. Torch-free.

"Ours" is the best of our backends that ran and were right. A ratio is a peer's time over ours.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from peers import BERT, EAGER

from gpu.results import Results

DF = "disentangled-flash"
GB_PER_GIB = 2**30 / 1e9
Quantity = Callable[[Results], float | None]


@dataclass(frozen=True)
class Goal:
    """One number and its bound."""

    number: str
    what: str
    unit: str
    bound: float
    measured: Quantity
    at_least: bool = False

    def is_met(self, value: float) -> bool:
        return value >= self.bound if self.at_least else value <= self.bound

    @property
    def wanted(self) -> str:
        return f"{'>=' if self.at_least else '<='} {self.bound:g}{self.unit}"


def ratio(above: float | None, below: float | None) -> float | None:
    return None if above is None or not below else above / below


def layer(key: str, point: str) -> Quantity:
    return lambda results: results.value("layer", key, ours=True, point=point)


def layer_ratio(peer: str, key: str, point: str) -> Quantity:
    return lambda results: ratio(results.value("layer", key, variant=peer, point=point), layer(key, point)(results))


def dropout_cost(results: Results) -> float | None:
    """Of the forward pass, as a fraction."""
    times = [results.value("op", "forward_ms", ours=True, point="512", dropout=rate) for rate in (0.1, 0.0)]
    found = ratio(*times)
    return None if found is None else 100 * (found - 1)


def rate(model: str, key: str = "tokens_per_s", scale: float = 1e-3) -> Quantity:
    def read(results: Results) -> float | None:
        found = results.largest("step", key, ours=True, model=model)
        return None if found is None else scale * found

    return read


def rate_ratio(peer: str) -> Quantity:
    """Of the base step: our tokens per second over the peer's."""
    return lambda results: ratio(
        rate("base", scale=1)(results), results.largest("step", "tokens_per_s", model="base", variant=peer)
    )


def of_base_step(model: str, **parameters: str) -> Quantity:
    """Time of our base step over that of another, or of another model of ours over the base's."""
    base: Quantity = lambda results: results.value("step", "step_ms", ours=True, model="base")  # noqa: E731
    if parameters:
        return lambda results: ratio(base(results), results.value("step", "step_ms", model=model, **parameters))
    return lambda results: ratio(results.value("step", "step_ms", ours=True, model=model), base(results))


def kept(selective: bool) -> Quantity:
    return lambda results: results.value("kept", "kib_per_token_per_layer", selective=selective)


def peak_gb(results: Results) -> float | None:
    found = results.value("step", "peak_gib", ours=True, model="base")
    return None if found is None else GB_PER_GIB * found


GOALS = (
    Goal("G1", "attention layer, N=512, forward and backward", " ms", 3.5, layer("both_ms", "512")),
    Goal("G1", "same, against disentangled-flash", "x", 2.5, layer_ratio(DF, "both_ms", "512"), True),
    Goal("G1", "same, against transformers eager", "x", 4, layer_ratio(EAGER, "both_ms", "512"), True),
    Goal("G2", "attention layer, N=512, forward, against disentangled-flash", "x", 2.5,
         layer_ratio(DF, "forward_ms", "512"), True),
    Goal("G3", "attention layer, N=2048, against disentangled-flash", "x", 3, layer_ratio(DF, "both_ms", "2048"), True),
    Goal("G3", "attention layer, N=8192, against disentangled-flash", "x", 4, layer_ratio(DF, "both_ms", "8192"), True),
    Goal("G4", "attention layer, N=128, against disentangled-flash", "x", 3, layer_ratio(DF, "both_ms", "128"), True),
    Goal("G5", "cost of attention dropout 0.1, op, N=512, forward", " %", 15, dropout_cost),
    Goal("G6", "scratch of the attention layer, 16k tokens, N=512", " GiB", 0.35, layer("peak_gib", "512 (16k)")),
    Goal("G7", "base step", "k tok/s", 400, rate("base"), True),
    Goal("G7", "base step, MFU", " %", 30, rate("base", "mfu", 100), True),
    Goal("G7", "base step, against transformers eager", "x", 3, rate_ratio(EAGER), True),
    Goal("G7", "base step, against transformers with disentangled-flash", "x", 2, rate_ratio(DF), True),
    Goal("G8", "large step", "k tok/s", 150, rate("large"), True),
    Goal("G8", "1.5B step", "k tok/s", 42, rate("1.5b"), True),
    Goal("G9", "base step : same-size BERT step", "x", 1.6, of_base_step("base", variant=BERT)),
    Goal("G10", "base RTD step : base MLM step", "x", 1.45, of_base_step("RTD")),
    Goal("M1", "kept for backward per token and layer", " KiB", 20, kept(False)),
    Goal("M1", "same, selective recompute", " KiB", 10, kept(True)),
    Goal("M2", "same, fp32 on a CPU, no dropout", " KiB", 40,
         lambda results: results.value("kept on a CPU", "kib_per_token_per_layer")),
    Goal("M3", "peak memory of a base step", " GB", 14, peak_gb),
)  # fmt: skip


def verdicts(results: Results) -> Iterator[tuple[Goal, float | None]]:
    """Every goal with what was measured; None where something of it was not."""
    for goal in GOALS:
        yield goal, goal.measured(results)
