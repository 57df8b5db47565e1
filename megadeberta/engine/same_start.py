"""All ranks of a run have the same recipe, data and versions: one line, before any of them builds its part.

A rank with another learning rate, seed or mask rate would train without a word, and one with another ZeRO stage would
wait for the others until the timeout. The launcher compares machines before it starts them; torchrun, srun and mpiexec
compare nothing.
"""

import json
from collections.abc import Iterator, Mapping
from typing import Any

from megadeberta.checkpoint.collectives import Collectives
from megadeberta.checkpoint.manifest import RunRecord
from megadeberta.errors import ParallelError

_MOST_SHOWN = 5


def check_same_start(run: RunRecord, collectives: Collectives) -> None:
    """Compare what this rank was started with with rank 0. A broadcast and an all-gather of text.

    Raises:
        ParallelError: on every rank; the first rank that differs, and in what.
    """
    mine = dict(_flat({"": run.config, "content of ": run.fingerprint, "version of ": run.versions}))
    first = json.loads(collectives.broadcast_text(json.dumps(mine)))
    keys = [key for key in sorted(mine.keys() | first.keys()) if mine.get(key) != first.get(key)]
    shown = ", ".join(f"{key} is {mine.get(key)} and not {first.get(key)}" for key in keys[:_MOST_SHOWN])
    findings = collectives.all_gather_text(shown)
    for rank, text in enumerate(findings):
        if text:
            others = sum(map(bool, findings)) - 1
            more = f" ({others} more ranks differ)" if others else ""
            raise ParallelError(
                f"rank {rank} was started otherwise than rank 0: {text}{more}; start every rank with the same command, "
                "files and installation"
            )


def _flat(sections: Mapping[str, Mapping[str, Any]]) -> Iterator[tuple[str, str]]:
    for title, values in sections.items():
        for key, value in values.items():
            if isinstance(value, Mapping) and value:
                yield from _flat({f"{title}{key}.": value})
            else:
                yield f"{title}{key}", json.dumps(value)
