"""The measurements of the day, the most valuable first. Torch-free: backends are read from their table."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from peers import BERT, EAGER, PACKAGES

from gpu.scale import GPU, TOY
from megadeberta.ops.attention.backends import AUTO, BACKENDS, REFERENCE, Backend
from megadeberta.ops.attention.backends import GPU as ON_GPU

MODEL_NEEDS = ("numpy", "pydantic")
ENGINE_NEEDS = (*MODEL_NEEDS, "deepspeed")


@dataclass(frozen=True)
class Measurement:
    """One entry of the plan."""

    name: str
    kind: str
    function: str
    """``module:function``, a ``finding.Measure``."""
    parameters: dict[str, Any] = field(default_factory=dict)
    seconds: float = 5.0
    """Expected on a GPU, with what it compiles and builds; it is not started with less left of the day."""
    needs: tuple[str, ...] = ()
    """Modules that must be installed."""
    excluded: str = ""
    """Why it cannot run on this machine; empty if it can."""


def backends() -> list[Backend]:
    """Those of the table that run on a GPU, the kernels before the reference."""
    return sorted((b for b in BACKENDS.values() if ON_GPU in b.devices), key=lambda b: b.name == REFERENCE)


def fastest_backend(device_type: str) -> str:
    """The first that runs on such a device here: the kernels where they can, else the reference."""
    return next(backend.name for backend in backends() if not backend.reason_not_to_run(device_type))


@dataclass(frozen=True)
class Planner:
    """Makes the measurements of one day."""

    toy: bool

    @property
    def device(self) -> str:
        return (TOY if self.toy else GPU).device

    def plan(self) -> list[Measurement]:
        """All of them, in the order of their value."""
        return [
            self._entry("device", "device", "device:card", {}, 10),
            *self.ops("512", 0.1),
            *self.kernels("512", 0.1),
            *self.layers("512"),
            self.step("base", AUTO, seconds=70, profile=True),
            self.step("base", BERT, seconds=25),
            self.step("base", EAGER, seconds=25),
            *(self.step("base", package, seconds=25) for package in PACKAGES),
            *(self.step("base", backend.name, seconds=25) for backend in backends() if backend.name != REFERENCE),
            *self.kept(),
            self.step("large", AUTO, seconds=35),
            self.step("RTD", AUTO, seconds=30, profile=True),
            self.step("1.5b", AUTO, seconds=60),
            *self.ops("512", 0.0),
            *(entry for point in ("2048", "8192", "128", "512 (16k)") for entry in self.layers(point)),
            self.step("base, mask decoder", AUTO, seconds=30),
            *self.agreement(),
            *self.kernels("512", 0.1, padding=True),
            *self.kernels("512", 0.0),
            *self.kernels("128", 0.1),
            *self.kernels("2048", 0.1),
            *self.tiles("512"),
            self.step("base", REFERENCE, seconds=25),
            *(entry for point in ("128", "2048", "8192") for rate in (0.1, 0.0) for entry in self.ops(point, rate)),
        ]

    def ops(self, point: str, dropout: float) -> Iterator[Measurement]:
        """Attention alone by every backend and every peer."""
        for variant, ours, needs, excluded in self._variants():
            if variant == "flashdeberta" and dropout:
                excluded = excluded or "it has no attention dropout: it would leave it out without a word"
            parameters = {"point": point, "dropout": dropout, "variant": variant, "ours": ours}
            seconds = 20 if ours and point == "512" else 6
            yield self._entry(
                f"op N={point} dropout {dropout}, {variant}", "op", "op", parameters, seconds, needs, excluded
            )

    def kernels(self, point: str, dropout: float, *, padding: bool = False) -> Iterator[Measurement]:
        """What the kernels of our backends take one by one, and what they were compiled to."""
        for backend in backends():
            if backend.name != REFERENCE:
                parameters = {"point": point, "dropout": dropout, "variant": backend.name, "padding": padding}
                name = f"kernels N={point} dropout {dropout}{' padded' if padding else ''}, {backend.name}"
                yield self._entry(name, "kernels", "kernels", parameters, 10, excluded=self._cannot(backend))

    def tiles(self, point: str) -> Iterator[Measurement]:
        """Our kernels with each of the tiles that a trial may choose from."""
        for backend in backends():
            if backend.has_plans:
                parameters = {"point": "128" if self.toy else point, "dropout": 0.1, "variant": backend.name}
                name = f"tiles N={point}, {backend.name}"
                yield self._entry(name, "tiles", "tiles", parameters, 40, excluded=self._cannot(backend))

    def layers(self, point: str) -> Iterator[Measurement]:
        """The attention layer with projections and LayerNorm, as a model has it."""
        for variant, ours, needs, excluded in self._variants():
            parameters = {"point": point, "dropout": 0.1, "variant": variant, "ours": ours}
            base = (*MODEL_NEEDS, "transformers") if variant in PACKAGES else MODEL_NEEDS
            needs = (*base, *needs)
            yield self._entry(f"layer N={point}, {variant}", "layer", "layer", parameters, 6, needs, excluded)

    def step(self, model: str, variant: str, *, seconds: float, profile: bool = False) -> Measurement:
        """An optimizer step through DeepSpeed, of our trainer or of transformers' model in the same engine."""
        theirs = variant == EAGER or variant in PACKAGES
        package = () if variant not in PACKAGES else (PACKAGES[variant],)
        needs = (*ENGINE_NEEDS, *(("transformers", *package) if theirs else ()))
        ours = not theirs and variant != BERT
        parameters = {"model": model, "variant": variant, "ours": ours, "profile": profile}
        excluded = self._no_package() if package else ""
        if variant in BACKENDS:
            excluded = self._cannot(BACKENDS[variant])
        return self._entry(f"step {model}, {variant}", "step", "step", parameters, seconds, needs, excluded)

    def kept(self) -> Iterator[Measurement]:
        """Bytes that a layer keeps for the backward pass."""
        for backend in backends():
            if backend.name != REFERENCE:
                for selective in (False, True):
                    parameters = {"variant": backend.name, "selective": selective}
                    name = f"bytes kept, {backend.name}{', selective recompute' if selective else ''}"
                    yield self._entry(name, "kept", "kept", parameters, 8, MODEL_NEEDS, excluded=self._cannot(backend))
        yield self._entry("bytes kept on a CPU, fp32", "kept on a CPU", "kept:on_cpu", {}, 8, MODEL_NEEDS)

    def agreement(self) -> Iterator[Measurement]:
        """Loss and gradients of a padded batch through a whole model, against our reference in fp32."""
        for variant in (*(b.name for b in backends() if b.name != REFERENCE), EAGER):
            needs = (*MODEL_NEEDS, "transformers") if variant == EAGER else MODEL_NEEDS
            excluded = self._cannot(BACKENDS[variant]) if variant in BACKENDS else ""
            yield self._entry(
                f"agreement, {variant}", "agreement", "agreement", {"variant": variant}, 15, needs, excluded
            )

    def _variants(self) -> Iterator[tuple[str, bool, tuple[str, ...], str]]:
        """Name, whether it is ours, what it needs, and why it cannot run here."""
        found = [(b.name, True, (), self._cannot(b)) for b in backends() if b.name != REFERENCE]
        found += [(package, False, (module,), self._no_package()) for package, module in PACKAGES.items()]
        found += [(EAGER, False, ("transformers",), ""), (BERT, False, (), "")]
        yield from (*found, (REFERENCE, False, (), ""))

    def _cannot(self, backend: Backend) -> str:
        return backend.reason_not_to_run(self.device)

    def _no_package(self) -> str:
        return "" if self.device == "cuda" else "its kernels need a CUDA GPU"

    def _entry(
        self,
        name: str,
        kind: str,
        place: str,
        parameters: dict[str, Any],
        seconds: float,
        needs: tuple[str, ...] = (),
        excluded: str = "",
    ) -> Measurement:
        module, _, function = place.partition(":")
        parameters = {**parameters, "toy": self.toy}
        return Measurement(
            name, kind, f"gpu.{module}:{function or 'measure'}", parameters, float(seconds), ("torch", *needs), excluded
        )


def choose(plan: Sequence[Measurement], wanted: Sequence[str]) -> list[Measurement]:
    """The measurements whose name has one of these texts in it; all without any."""
    return [entry for entry in plan if not wanted or any(text in entry.name for text in wanted)]
