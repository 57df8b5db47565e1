"""Which implementation of the op the layers of a model take on a device."""

import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import nn

from megadeberta.errors import ConfigError
from megadeberta.ops.attention.backends import AUTO, BACKENDS, backends_to_try, resolve

log = logging.getLogger(__name__)

_LONGEST = 512
"""Tokens of the sequences that a trial runs on, at most: of a model for thousands, few inputs are that long."""


@dataclass(frozen=True)
class BackendChoice:
    """What was asked for, and what that means on one type of device."""

    setting: str
    device_type: str
    name: str

    def on(self, device: torch.device) -> str:
        """For ``disentangled_attention``; on another type of device what is known without a trial."""
        return self.name if device.type == self.device_type else self.setting


def check_setting(setting: str, device_types: Iterable[str]) -> None:
    """Refuse what is neither "auto" nor the name of a backend that runs on those types of devices.

    Raises:
        ConfigError: names what exists, or says why it does not run there.
    """
    if setting != AUTO and setting not in BACKENDS:
        raise ConfigError(f"attention backend {setting!r} does not exist; known: {', '.join([AUTO, *BACKENDS])}")
    for device_type in device_types:
        reason = resolve(setting, device_type).reason_not_to_run(device_type)
        if reason:
            raise ConfigError(f"attention backend {setting}: {reason}; use auto")


def choose_backend(
    setting: str, device: torch.device, dtype: torch.dtype, *, fields: Callable[[], dict[str, object]]
) -> BackendChoice:
    """The backend named, or for "auto" what the trainer takes: on a GPU the kernels if a trial of seconds finds them
    right and faster.

    Args:
        fields: of ``ModelConfig``, for a layer of the model's shape that the trial runs.

    Raises:
        ConfigError: see ``check_setting``.
    """
    check_setting(setting, [device.type])
    name = resolve(setting, device.type).name
    if setting == AUTO and device.type != "meta" and backends_to_try(device.type):
        name = _after_trial(device, dtype, fields()) or name
    return BackendChoice(setting, device.type, name)


def _after_trial(device: torch.device, dtype: torch.dtype, fields: dict[str, object]) -> str | None:
    """The backend that ``choose_attention`` takes; None if the trainer has no layer of this shape to try."""
    from megadeberta.config.model import ModelConfig
    from megadeberta.model.attention_backend import choose_attention, select_attention
    from megadeberta.model.kernel_trial import Trial, try_backend

    try:
        config = ModelConfig.model_validate(fields)
    except ValueError as error:
        log.info("attention auto: no trial for a layer of this shape (%s)", str(error).splitlines()[0])
        return None

    def select(module: nn.Module, backend: str) -> None:
        select_attention(module, backend, device)

    def trial(candidate: str, rival: str) -> Trial:
        length = min(_LONGEST, config.max_position_embeddings)
        return try_backend(config, select, candidate, rival, length=length, dtype=dtype, device=device)

    choice = choose_attention(AUTO, device, trial)
    log.info(choice.line)
    return choice.backend
