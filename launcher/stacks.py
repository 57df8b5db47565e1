"""The stacks that a rank writes when it is asked to (faulthandler), and which ranks wait in a collective. Pure."""

import re
from collections.abc import Mapping, Sequence

_FRAME = re.compile(r'\s*File "([^"]+)", line (\d+) in (\S+)')
_THREAD = re.compile(r"(Current t|T)hread 0x")
_COLLECTIVE = re.compile(r"/torch/distributed/|/deepspeed/comm/|/engine/collectives\.py|/checkpoint/collectives\.py")
_LOOKED_AT = 4
"""Innermost frames that may belong to the collective itself."""


def main_stack(lines: Sequence[str]) -> list[str]:
    """The frames of the main thread, innermost first: ``file:line function``. It is written last, as the oldest."""
    frames: list[str] = []
    for line in lines:
        if _THREAD.search(line):
            frames = []
        elif match := _FRAME.search(line):
            frames.append(f"{match[1]}:{match[2]} {match[3]}")
    return frames


def outside_collectives(stacks: Mapping[int, Sequence[str]]) -> list[int]:
    """Ranks that wait for nobody although others do; all are suspects where none waits, none where all do.

    Args:
        stacks: what each rank has written; ranks that wrote nothing are left out.
    """
    frames = {rank: main_stack(lines) for rank, lines in stacks.items()}
    return [
        rank
        for rank, of_rank in frames.items()
        if of_rank and not any(_COLLECTIVE.search(frame) for frame in of_rank[:_LOOKED_AT])
    ]
