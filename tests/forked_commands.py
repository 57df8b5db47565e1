"""Commands in processes that are forked from one that has loaded torch, DeepSpeed and transformers: a second each.

``python forked_commands.py`` reads requests, one JSON object per line: ``words`` of a megadeberta or python command,
``folder``, ``environ`` and the file for its output. It answers each with a line that holds the exit code.
"""

import json
import os
import runpy
import subprocess
import sys
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Self

ROOT = Path(__file__).parents[1]


class ForkedCommands:
    """The process that forks, started once; a context manager."""

    def __enter__(self) -> Self:
        environ = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "COLUMNS": "80"}
        self._process = subprocess.Popen(
            [sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environ
        )
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()

    def run(self, words: Sequence[str], folder: Path, *, environ: Mapping[str, str] | None = None) -> tuple[int, str]:
        """Exit code and output of one command, which begins with ``megadeberta`` or ``python``."""
        assert self._process.stdin is not None and self._process.stdout is not None
        output = folder / ".output"
        request = {"words": list(words), "folder": str(folder), "environ": dict(environ or {}), "output": str(output)}
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        return int(self._process.stdout.readline()), output.read_text(encoding="utf-8")


def _serve() -> None:
    answers = os.fdopen(os.dup(1), "w")  # before anything is imported that prints
    os.dup2(2, 1)
    import deepspeed  # noqa: F401
    import matplotlib.pyplot  # noqa: F401
    import torch  # noqa: F401
    import transformers.models.auto.modeling_auto
    import transformers.models.deberta_v2.modeling_deberta_v2  # noqa: F401
    from transformers import AutoTokenizer  # noqa: F401

    import megadeberta.convert.export
    import megadeberta.train  # noqa: F401

    for line in sys.stdin:
        request = json.loads(line)
        child = os.fork()
        if child == 0:
            _become(request)
        _, status = os.waitpid(child, 0)
        print(os.waitstatus_to_exitcode(status), file=answers, flush=True)


def _become(request: dict) -> None:
    """Run the command in this process, and end it."""
    code = 1
    try:
        with open(request["output"], "wb") as output, open(os.devnull) as nothing:
            os.dup2(output.fileno(), 1)
            os.dup2(output.fileno(), 2)
            os.dup2(nothing.fileno(), 0)
        os.chdir(request["folder"])
        os.environ.update(request["environ"])
        _start(request["words"])
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _start(words: list[str]) -> None:
    program, *arguments = words
    if program == "megadeberta":
        from megadeberta.cli import main

        sys.argv = words
        main()
    elif arguments[0] == "-m":
        sys.argv = arguments[1:]
        runpy.run_module(arguments[1], run_name="__main__", alter_sys=True)
    else:
        sys.argv = arguments
        runpy.run_path(arguments[0], run_name="__main__")


if __name__ == "__main__":
    _serve()
