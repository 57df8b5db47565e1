"""Can a rank of this run start on this machine?

    python -m megadeberta.launcher.hosts.node_check WORLD_SIZE RECIPE [OVERRIDE ...]

`megadeberta launch --hostfile` asks this of every machine; the answer is one line of JSON on standard output.
"""

import hashlib
import importlib.metadata
import json
import platform
import sys
from collections.abc import Sequence
from pathlib import Path

from megadeberta.errors import MegadebertaError
from megadeberta.preflight.run import prepare_run

_PACKAGES = ("megadeberta", "torch", "deepspeed")


def check(recipe: Path, overrides: Sequence[str], *, world_size: int) -> dict[str, object]:
    """``{"facts": ...}``, which must be the same on all machines, or ``{"error": ..., "exit_code": ...}``."""
    try:
        prepared = prepare_run(recipe, overrides, world_size=world_size)
    except MegadebertaError as error:
        return {"error": str(error), "exit_code": error.exit_code}
    facts = {package: importlib.metadata.version(package) for package in _PACKAGES}
    facts["Python"] = platform.python_version()
    facts["recipe"] = hashlib.sha256(prepared.config.model_dump_json().encode()).hexdigest()[:12]
    facts["training data"] = prepared.data.train_content[:12]
    facts["tokenizer"] = prepared.data.tokenizer_sha256[:12]
    return {"facts": facts}


if __name__ == "__main__":
    answer = check(Path(sys.argv[2]), sys.argv[3:], world_size=int(sys.argv[1]))
    sys.stdout.write(json.dumps(answer) + "\n")
