"""The table of attention backends: each one says itself where it runs, what goes with it and what it keeps.

Torch-free, so that recipes are checked and memory is planned by the same facts; a backend's own code is imported when
it first runs. A new backend is a function with the arguments of ``reference_attention`` and an entry here, or a call of
``register_backend`` in a module of your own (docs/kernels.md, "Adding a backend").
"""

import difflib
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from importlib import import_module, metadata
from importlib.util import find_spec
from typing import Any

from megadeberta.errors import ConfigError

AUTO = "auto"
REFERENCE = "reference"
"""The definition of correct: takes every mask on every device, and is what remains where nothing else can be taken."""
CPU, GPU = "cpu", "gpu"

TRITON_FROM, TRITON_BELOW = (3, 6), (3, 10)
"""The versions that the kernels were tested with, as the extra `gpu` of pyproject.toml names them."""

_PRECISE = 4  # softmax and log-sum-exp are fp32 at least
_INDEX = 8  # int64
_ROW = 4  # int32
_DEVICES = {CPU: "a CPU", GPU: "a GPU"}


@dataclass(frozen=True)
class AttentionShape:
    """One call of attention on one rank, as far as its memory is concerned."""

    sequences: int
    rows: int
    """Query rows of a sequence."""
    length: int
    """Keys of a sequence."""
    heads: int
    """Of this rank."""
    head_size: int
    table_rows: int
    """Rows of the relative table that a sequence of this length reads; 0 without one."""
    terms: tuple[str, ...]
    """Position terms, of "c2p" and "p2c"."""
    element_bytes: int
    """Of the queries, keys and values."""
    dropout: bool
    gathered: bool
    """The query rows have positions of their own in every sequence, as in the mask decoder."""

    @property
    def queries(self) -> int:
        """Query rows of all sequences and heads."""
        return self.sequences * self.rows * self.heads

    @property
    def pairs(self) -> int:
        """Scores: every query row with every key."""
        return self.queries * self.length

    @property
    def query_bytes(self) -> int:
        return self.queries * self.head_size * self.element_bytes

    @property
    def key_bytes(self) -> int:
        """Of the keys, or of the values."""
        return self.sequences * self.length * self.heads * self.head_size * self.element_bytes


@dataclass(frozen=True)
class Backend:
    """An implementation of attention and what the rest of the code has to know about it.

    The defaults, and the two counts of bytes, describe plain torch code that autograd differentiates. Another kind of
    implementation is a subclass that counts its own.
    """

    name: str
    """What ``training.attention`` calls it."""
    summary: str
    """One line for messages and docs."""
    implementation: str | Callable[..., Any]
    """A function with the arguments of ``reference_attention``, or where it is: "module:function"."""
    residual_norm: str = "torch"
    """The implementation of ``ops/residual_norm.py`` that ``training.residual_norm=auto`` takes beside it."""
    devices: tuple[str, ...] = (CPU, GPU)
    """Where it runs."""
    auto_on: tuple[str, ...] = ()
    """Where ``training.attention=auto`` may take it; of several, the first in the table."""
    needs_trial: bool = False
    """auto takes it only where a trial before the run finds it right and faster (``model/kernel_choice``)."""
    has_plans: bool = False
    """Its kernels have tiles that the trial chooses (``triton_plan.py``)."""
    takes_pairs: bool = True
    """Whether it takes masks with a free choice of pairs (``AttentionMask.pairs``); the reference takes its place there
    if it does not."""
    keeps_projections: bool = False
    """Whether it keeps queries, keys, values and projected table for backward as they were given, so that these bytes
    are those of the projections (and none where the projections are recomputed). Plain torch keeps copies instead."""

    def reason_not_to_run(self, device_type: str) -> str:
        """Why it does not run on a device of that type (``torch.device.type``) here, for the user; empty if it does."""
        if _kind(device_type) in self.devices:
            return ""
        return f"it runs on {' and '.join(_DEVICES[device] for device in self.devices)} only, and this is {device_type}"

    def kept_bytes(self, shape: AttentionShape) -> int:
        """Bytes that one call keeps for the backward pass, besides the context and the projections of
        ``keeps_projections``."""
        size = shape.element_bytes
        kept = shape.pairs * (_PRECISE + size)  # softmax, and what multiplies the values
        if shape.dropout:
            kept += shape.pairs * size
        kept += 2 * shape.sequences * shape.rows * shape.length  # bool: which pairs are hidden, for both fills
        if shape.terms:
            # The index of the gathers: one for all sequences unless each has rows of its own.
            kept += _INDEX * shape.length * shape.rows * (shape.sequences if shape.gathered else 1)
        if "c2p" in shape.terms:  # its scores by table row, and the scaled queries once more
            kept += shape.queries * shape.table_rows * size + shape.query_bytes
        if "p2c" in shape.terms:
            kept += shape.sequences * shape.length * shape.heads * shape.table_rows * size
        # A product with a table that all sequences share copies it for each.
        kept += len(shape.terms) * shape.sequences * shape.table_rows * shape.heads * shape.head_size * size
        # Query, key, value and, for the other position term, the key again: contiguous copies.
        return kept + shape.query_bytes + (3 if "p2c" in shape.terms else 2) * shape.key_bytes

    def workspace_bytes(self, shape: AttentionShape) -> int:
        """Bytes that its backward pass has at one time besides the gradients it returns; counted, not measured."""
        return 2 * shape.pairs * (_PRECISE + shape.element_bytes)

    def load(self) -> Callable[..., Any]:
        """The implementation, imported."""
        return _function(self.implementation) if isinstance(self.implementation, str) else self.implementation


@dataclass(frozen=True)
class _Tiled(Backend):
    """Computes scores tile by tile; keeps the softmax of all, or nothing."""

    keeps_softmax: bool = False

    def kept_bytes(self, shape: AttentionShape) -> int:
        return shape.pairs * _PRECISE if self.keeps_softmax else 0

    def workspace_bytes(self, shape: AttentionShape) -> int:
        return 0


@dataclass(frozen=True)
class _Kernels(Backend):
    """Keeps the log-sum-exp of every query row; its backward kernels compute the scores again."""

    has_plans: bool = True

    def reason_not_to_run(self, device_type: str) -> str:
        return reason_without_triton(device_type)

    def kept_bytes(self, shape: AttentionShape) -> int:
        kept = shape.queries * _PRECISE
        if shape.gathered:
            # The context before copies of a row are taken from the first one, the index of that, and a row per key.
            kept += shape.query_bytes + shape.sequences * (_INDEX * shape.rows + _ROW * shape.length)
        return kept

    def workspace_bytes(self, shape: AttentionShape) -> int:
        return 0


@dataclass(frozen=True)
class _HopperKernels(_Kernels):
    """For one generation of GPUs, in a language that has no interpreter."""

    def reason_not_to_run(self, device_type: str) -> str:
        if not has_triton():
            return reason_without_triton(device_type)
        if _kind(device_type) == CPU:
            return "it needs a GPU, and this is a CPU (Gluon has no interpreter)"
        reason: str = _function("megadeberta.ops.attention.gluon_support:reason_not_to_run")()
        return reason


def has_triton() -> bool:
    """Whether Triton is installed."""
    return find_spec("triton") is not None


def reason_without_triton(device_type: str) -> str:
    """Why Triton kernels do not run on a device of that type here; empty if they do."""
    if not has_triton():
        return "Triton is not installed (pip install 'megadeberta[gpu]')"
    version = _triton_version()
    if version is not None and version < TRITON_FROM:
        return f"Triton {_dotted(version)} is too old; {_dotted(TRITON_FROM)} or newer (pip install 'megadeberta[gpu]')"
    if _kind(device_type) == CPU and os.environ.get("TRITON_INTERPRET") != "1":
        return "it needs a GPU, and this is a CPU (TRITON_INTERPRET=1 tests the kernels slowly)"
    return ""


def untested_triton() -> str:
    """A line for the log where the installed Triton is newer than the kernels were tested with; else empty.

    Newer ones are not refused: the trial before a run checks and times the kernels, and auto takes others if it must.
    """
    version = _triton_version()
    if not has_triton() or (version is not None and version < TRITON_BELOW):
        return ""
    found = "of unknown version" if version is None else _dotted(version)
    return (
        f"Triton {found} is untested with these kernels ({_dotted(TRITON_FROM)} up to, not including, "
        f"{_dotted(TRITON_BELOW)} are): training.attention=auto checks and times them before it takes them"
    )


def _triton_version() -> tuple[int, int] | None:
    """Major and minor; None where Triton is not installed or does not say."""
    try:
        major, minor = metadata.version("triton").split(".")[:2]
        return int(major), int(minor)
    except (metadata.PackageNotFoundError, ValueError):
        return None


def _dotted(version: tuple[int, int]) -> str:
    return ".".join(map(str, version))


BACKENDS: dict[str, Backend] = {}
"""By name; ``register_backend`` adds to it."""


def register_backend(backend: Backend) -> None:
    """Let ``training.attention`` name ``backend``. Once more with an equal one does nothing.

    Raises:
        ConfigError: the name is another backend's.
    """
    known = BACKENDS.get(backend.name)
    if backend.name == AUTO or (known is not None and known != backend):
        other = "the choice by device" if known is None else f"{known.implementation} ({known.summary})"
        raise ConfigError(f"attention backend {backend.name!r} exists: {other}; give the new one another name")
    BACKENDS[backend.name] = backend


def find_backend(name: str, *, source: str = "") -> Backend:
    """The backend of that name; ``source`` is the recipe that asks for it.

    Raises:
        ConfigError: there is none; names the nearest one and all others.
    """
    if name in BACKENDS:
        return BACKENDS[name]
    near = difflib.get_close_matches(name, BACKENDS, n=1, cutoff=0.5)
    hint = f"did you mean {near[0]!r}? " if near else ""
    known = "".join(f", {backend.name} ({backend.summary})" for backend in BACKENDS.values())
    where = f"{source}: " if source else ""
    raise ConfigError(f"{where}training.attention={name!r} is no attention backend; {hint}known: {AUTO}{known}")


def check_setting(setting: str, *, source: str) -> None:
    """Refuse a ``training.attention`` that is neither "auto" nor the name of a backend.

    Raises:
        ConfigError: see ``find_backend``.
    """
    if setting != AUTO:
        find_backend(setting, source=source)


def sure_backend(device_type: str) -> Backend:
    """What auto takes on a device of that type without a trial."""
    return next((backend for backend in _automatic(device_type) if not backend.needs_trial), BACKENDS[REFERENCE])


def backends_to_try(device_type: str) -> list[Backend]:
    """What auto takes instead on a device of that type, if a trial finds it right and faster."""
    return [backend for backend in _automatic(device_type) if backend.needs_trial]


def resolve(setting: str, device_type: str) -> Backend:
    """What a setting means without a trial: the backend named, or for auto the sure one.

    Raises:
        ConfigError: there is no such backend.
    """
    return sure_backend(device_type) if setting == AUTO else find_backend(setting)


def planned_backend(setting: str, *, on_gpu: bool) -> str:
    """What memory is planned with. Whether a trial will be passed nobody knows before; the reference needs more.

    Raises:
        ConfigError: there is no such backend.
    """
    return resolve(setting, GPU if on_gpu else CPU).name


def _automatic(device_type: str) -> list[Backend]:
    return [backend for backend in BACKENDS.values() if _kind(device_type) in backend.auto_on]


def _kind(device_type: str) -> str:
    return CPU if device_type == CPU else GPU


@cache
def _function(place: str) -> Callable[..., Any]:
    module, _, name = place.partition(":")
    return getattr(import_module(module), name)


for _backend in (
    Backend(
        name=REFERENCE,
        summary="plain torch, the definition of correct",
        implementation="megadeberta.ops.attention.reference:reference_attention",
    ),
    _Tiled(
        name="cpu",
        summary="cache-sized tiles; keeps the softmax for backward",
        implementation="megadeberta.ops.attention.cpu:cpu_attention",
        residual_norm="cpu",
        devices=(CPU,),
        auto_on=(CPU,),
        keeps_projections=True,
        keeps_softmax=True,
    ),
    _Tiled(
        name="cpu-lean",
        summary="the same tiles, computed again in backward: least memory",
        implementation="megadeberta.ops.attention.cpu:lean_cpu_attention",
        residual_norm="cpu",
        devices=(CPU,),
        keeps_projections=True,
    ),
    _HopperKernels(
        name="gluon",
        summary="Gluon kernels for Hopper",
        implementation="megadeberta.ops.attention.triton_operators:gluon_attention",
        residual_norm="triton",
        auto_on=(GPU,),
        needs_trial=True,
        takes_pairs=False,
        keeps_projections=True,
    ),
    _Kernels(
        name="triton",
        summary="Triton kernels",
        implementation="megadeberta.ops.attention.triton_operators:triton_attention",
        residual_norm="triton",
        auto_on=(GPU,),
        needs_trial=True,
        takes_pairs=False,
        keeps_projections=True,
    ),
):
    register_backend(_backend)
