"""CPU seconds of every mistake of ``tests/e2e``, each as a process of its own, slowest first.

    python benchmarks/mistake_times.py                 # all of them, several minutes
    python benchmarks/mistake_times.py tracker recipe  # those whose name has one of these words

CPU seconds, not seconds: beside other work a machine takes several times as long for the same. It ends with 1 where a
mistake is over the goal or ends with another exit code than 2.
"""

import argparse
import os
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

from rich.console import Console

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from megadeberta.data_prep.options import PrepOptions, VocabularyOptions  # noqa: E402
from megadeberta.data_prep.prepare import prepare  # noqa: E402
from megadeberta.errors import EXIT_USAGE  # noqa: E402
from tests.data_fixtures import NUM_PIECES, SOTU  # noqa: E402
from tests.e2e.typed_mistakes import ALL_MISTAKES  # noqa: E402

GOAL = 5.0
"""CPU seconds until the line is there. Without torch it takes less than one."""


def _children_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def measure(name: str, folder: Path, prepared: Path) -> tuple[float, int, list[str]]:
    """CPU seconds, exit code and lines of standard error of one mistake, made in ``folder``."""
    folder.mkdir()
    here = Path.cwd()
    os.chdir(folder)  # a case may write files before it names its arguments
    try:
        arguments = ALL_MISTAKES[name][0](folder, prepared)
    finally:
        os.chdir(here)
    before = _children_seconds()
    done = subprocess.run(
        [sys.executable, "-m", "megadeberta", *arguments],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT), "DS_ACCELERATOR": "cpu"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    return _children_seconds() - before, done.returncode, done.stderr.splitlines()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("words", nargs="*", help="of the names to measure; all without one")
    words = parser.parse_args().words
    chosen = [name for name in ALL_MISTAKES if not words or any(word in name for word in words)]
    rows = []
    with tempfile.TemporaryDirectory() as scratch:
        options = PrepOptions((SOTU,), Path(scratch) / "sotu", VocabularyOptions(size=NUM_PIECES))
        prepare(options, console=Console(quiet=True), plot=lambda folder, lengths: None)
        for number, name in enumerate(chosen):
            rows.append((*measure(name, Path(scratch) / str(number), options.output), name))
            print(f"{number + 1} of {len(chosen)}: {rows[-1][0]:.1f} s, {name}", file=sys.stderr, flush=True)
    for seconds, code, lines, name in sorted(rows, reverse=True):
        print(f"{seconds:5.2f} s  exit {code}  {name}: {' / '.join(lines)[:100]}")
    bad = sum(seconds > GOAL or code != EXIT_USAGE for seconds, code, _, _ in rows)
    print(f"{len(rows)} mistakes, {bad} over {GOAL} CPU seconds or with another exit code than {EXIT_USAGE}")
    return int(bad > 0)


if __name__ == "__main__":
    sys.exit(main())
