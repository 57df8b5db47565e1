"""Which machines of a hostfile a start takes: the first that can run, with spare ones and fewer where asked. Pure."""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass

from megadeberta.errors import ConfigError


def _always(world_size: int) -> bool:
    return True


@dataclass(frozen=True)
class HostChoice:
    """The machines of a run, and what it does without some of them."""

    slots: Mapping[str, int]
    """Of every host, in the order of the hostfile."""
    spare: int = 0
    """Hosts that no start needs: it takes as many others as come first."""
    fewest: int | None = None
    """How many may be left for a run that goes on without the others; None: it waits for all."""
    fits: Callable[[int], bool] = _always
    """Whether the recipe's layout and batch divide among so many ranks."""

    def __post_init__(self) -> None:
        """
        Raises:
            ConfigError: too many spare hosts, or hosts of different sizes where one may replace another.
        """
        if not 0 <= self.spare < len(self.slots):
            raise ConfigError(
                f"--spare-hosts {self.spare} leaves none of the hostfile's {len(self.slots)} hosts to train on"
            )
        if self.fewest is not None and not 0 < self.fewest <= self.needed:
            raise ConfigError(f"--fewest-hosts {self.fewest} must be between 1 and the {self.needed} hosts that train")
        if (self.spare or self.fewest is not None) and len(set(self.slots.values())) > 1:
            shown = ", ".join(f"{host} {slots}" for host, slots in self.slots.items())
            raise ConfigError(f"spare or fewer hosts need the same slots on each; the hostfile has {shown}")

    @property
    def needed(self) -> int:
        """Hosts of a whole start."""
        return len(self.slots) - self.spare

    @property
    def world_size(self) -> int:
        """Ranks of a whole start."""
        return self.ranks_of(list(self.slots)[: self.needed])

    def ranks_of(self, hosts: Collection[str]) -> int:
        """Ranks on these hosts."""
        return sum(self.slots[host] for host in hosts)

    def whole(self, able: Collection[str]) -> list[str]:
        """The hosts of a start that lacks none, in the order of the file; empty where too few are able."""
        found = [host for host in self.slots if host in able][: self.needed]
        return found if len(found) == self.needed else []

    def fewer(self, able: Collection[str]) -> list[str]:
        """As many of the able hosts as the layout and the batch divide among; empty for none, or where that is not
        allowed."""
        found = [host for host in self.slots if host in able][: self.needed]
        for count in range(len(found), (self.fewest or len(found) + 1) - 1, -1):
            if self.fits(self.ranks_of(found[:count])):
                return found[:count]
        return []
