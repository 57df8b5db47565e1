"""Which implementation of the op the layers of a model take on a device."""

import logging
from collections.abc import Iterable
from dataclasses import dataclass

import torch

from megadeberta.errors import ConfigError
from megadeberta.hf.trial import LayerShape, try_backend
from megadeberta.ops.attention.backends import AUTO, BACKENDS, backends_to_try, resolve

log = logging.getLogger(__name__)


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


def choose_backend(setting: str, device: torch.device, dtype: torch.dtype, *, shape: LayerShape) -> BackendChoice:
    """The backend named, or for "auto" on a GPU the kernels, if a trial of seconds at the model's shape finds them
    right and faster than what auto takes without one.

    Raises:
        ConfigError: see ``check_setting``.
    """
    check_setting(setting, [device.type])
    taken, least, reasons = resolve(setting, device.type).name, 1.0, []
    rival = taken
    for candidate in backends_to_try(device.type) if setting == AUTO and device.type != "meta" else []:
        finding = candidate.reason_not_to_run(device.type)
        ratio = 1.0
        if not finding:
            ratio, finding = try_backend(candidate.name, rival, shape, dtype, device)
        reasons.append(f"{candidate.name}: {finding or f'right here, in {ratio:.2f} of the time of {rival}'}")
        if ratio < least:
            taken, least = candidate.name, ratio
    if reasons:
        log.info("; ".join([f"attention {setting}: {taken} on {device.type}", *reasons]))
    return BackendChoice(setting, device.type, taken)
