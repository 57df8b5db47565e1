"""The stacks that a rank writes when it is asked to (faulthandler), and which ranks wait in a collective. Pure."""

import re
from collections.abc import Mapping, Sequence

_FRAME = re.compile(r'\s*File "([^"]+)", line (\d+) in (\S+)')
_THREAD = re.compile(r"(Current t|T)hread 0x")
_COLLECTIVE = re.compile(r"/torch/distributed/|/deepspeed/comm/|/engine/collectives\.py|/checkpoint/collectives\.py")
_DISPATCH = re.compile(r"/torch/(_ops|_compile|_dynamo/eval_frame|utils/_contextlib)\.py")
"""Frames of torch between a collective and the call that waits."""


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

    The innermost frame tells: a signal handler that runs on top of a collective is no wait for it.

    Args:
        stacks: what each rank has written; ranks that wrote nothing are left out.
    """
    frames = {rank: main_stack(lines) for rank, lines in stacks.items()}
    return [
        rank
        for rank, of_rank in frames.items()
        if of_rank and not _COLLECTIVE.search(next((f for f in of_rank if not _DISPATCH.search(f)), ""))
    ]
