"""Is a refactoring exact? Train the same recipes in two checkouts and compare what comes out, bit for bit.

    python benchmarks/compare_checkouts.py BEFORE AFTER SHARDS OUTPUT [--steps 20] [--only pipelined ar]

BEFORE and AFTER are checkouts, each with its own environment (`make venv`); SHARDS is a folder that `megadeberta prep`
of BEFORE wrote, with a validation shard and at most 4095 pieces. Every case trains in both on the CPU, one run at a
time. Compared are all of metrics.jsonl but speeds, and of the last checkpoint every rank's part of the weights and of
the optimizer's moments, with its index. In `resumed`, AFTER goes on from a checkpoint of BEFORE and is compared with
BEFORE that went on by itself; in `shards`, AFTER verifies SHARDS.

Runs of BEFORE are kept in OUTPUT/before and used again while its commit and the command are the same (what is not
committed there goes unnoticed); those of AFTER are made anew. Only the command line of the checkouts is used, and the
files of docs/formats.md. Exit code 1 if anything differs.
"""

import argparse
import json
import math
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from safetensors.numpy import load_file

SPEEDS = ("tokens_per_second", "seconds_", "gpu_memory")
ENVIRONMENT = {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE", "CUDA_VISIBLE_DEVICES": ""}
SHOWN_LOG_LINES = 15


class Case(NamedTuple):
    """One recipe under one layout; ``overrides`` are for ``--set``."""

    recipe: str
    ranks: int
    overrides: tuple[str, ...] = ()


QUICKSTART, RESUMED, SHARDS = "quickstart", "resumed", "shards"
CASES = {
    QUICKSTART: Case("ds_configs/quickstart.json", 2),
    "rtd": Case("ds_configs/quickstart.json", 1, ("objective.name=rtd",)),
    "pipelined": Case("ds_configs/quickstart.json", 2, ("parallel.pipeline=2",)),
    "tensor-parallel": Case("ds_configs/quickstart.json", 2, ("parallel.tensor=2",)),
    "ar": Case("ds_configs/quickstart.json", 1, ("objective.name=ar", "objective.autoregressive.prefix_share=0.5")),
}


class Mismatch(Exception):
    """The first difference of a case, or the reason why there is nothing to compare."""


class Checkout:
    """One version of the code; its runs are ``output/CASE/run``, with ``output/CASE/log.txt`` beside them."""

    def __init__(self, label: str, folder: Path, output: Path, *, keeps_runs: bool) -> None:
        self.label, self.folder, self.output = label, folder.resolve(), output
        self._python, self._keeps_runs = self.folder / ".venv/bin/python", keeps_runs
        if not self._python.exists():
            raise SystemExit(f"error: {self._python} does not exist; run `make venv` in {folder}")
        where = self._read([str(self._python), "-c", "import megadeberta; print(megadeberta.__file__)"])
        if not Path(where).resolve().is_relative_to(self.folder):
            raise SystemExit(f"error: the environment of {folder} has the code of {where}; run `make venv` there")
        self.commit = self._read(["git", "rev-parse", "HEAD"])

    def train(self, name: str, case: Case, overrides: list[str], steps: int, *, start: Path | None = None) -> Path:
        """The run folder of a finished case; ``start`` is a run folder of which a copy goes on."""
        folder = self.output / name
        run, stamp = folder / "run", folder / "finished.json"
        begin = ["launch", case.recipe, "--ranks", str(case.ranks)] if case.ranks > 1 else ["train", case.recipe]
        values = [*case.overrides, *overrides, f"training.steps={steps}", f"training.output_dir={run}"]
        words = begin + [word for value in values for word in ("--set", value)]
        what = json.dumps({"commit": self.commit, "words": words}, indent=1)
        if self._keeps_runs and stamp.exists() and stamp.read_text() == what:
            print(f"  {name}, {self.label}: kept from an earlier comparison", flush=True)
            return run
        if folder.exists():
            shutil.rmtree(folder)
        if start is not None:
            shutil.copytree(start, run)
        self.call(name, words)
        stamp.write_text(what)
        return run

    def call(self, name: str, words: list[str]) -> None:
        """One command of megadeberta to its end; a Mismatch if it fails."""
        log = self.output / name / "log.txt"
        log.parent.mkdir(parents=True, exist_ok=True)
        print(f"  {name}, {self.label}: megadeberta {words[0]}, log in {log}", flush=True)
        command = [str(self._python), "-m", "megadeberta", *words]
        with log.open("wb") as file:
            process = subprocess.Popen(command, cwd=self.folder, env=_environment(), stdout=file, stderr=file)
        try:
            process.wait()
        finally:  # also when this script is stopped
            process.terminate()
            process.wait()
        if process.returncode:
            end = "\n".join(log.read_text(errors="replace").splitlines()[-SHOWN_LOG_LINES:])
            raise Mismatch(f"{self.label} failed with exit code {process.returncode}; its log ends with\n{end}")

    def _read(self, command: list[str]) -> str:
        result = subprocess.run(command, cwd=self.folder, env=_environment(), capture_output=True, text=True)
        if result.returncode:
            raise SystemExit(f"error: {' '.join(command)} failed in {self.folder}: {result.stderr.strip()}")
        return result.stdout.strip()


def _environment() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | ENVIRONMENT


def compare_runs(before: Path, after: Path, *, first: int, last: int) -> str:
    """Compare steps ``first`` to ``last`` and the checkpoint of the last one; what was compared, in words."""
    records, others = _read_metrics(before, first), _read_metrics(after, first)
    _compare_values(records, others)
    counts = {key: sum(where.endswith(f" {key}") for where in records) for key in ("loss", "grad_norm", "valid_loss")}
    steps = last - first + 1
    if counts["loss"] != steps or counts["grad_norm"] != steps or not counts["valid_loss"]:
        raise Mismatch(f"metrics.jsonl should have {steps} losses and norms and validation losses, and has {counts}")
    (tensors, facts), (other_tensors, other_facts) = _read_checkpoint(before, last), _read_checkpoint(after, last)
    _compare_values(facts, other_facts)
    _compare_tensors(tensors, other_tensors)
    return (
        f"{steps} losses, {steps} norms, {counts['valid_loss']} validation losses, {len(tensors)} tensors of "
        f"{sum(tensor.size for tensor in tensors.values()):,} numbers: equal"
    )


def _read_metrics(run: Path, first: int) -> dict[str, Any]:
    """``step 3 loss`` -> value, in the order of the file."""
    values: dict[str, Any] = {}
    for line in (run / "metrics.jsonl").read_text().splitlines():
        record = json.loads(line)
        step = record.pop("step")
        new = {
            f"step {step} {key}": value for key, value in record.items() if step >= first and not key.startswith(SPEEDS)
        }
        if twice := new.keys() & values.keys():
            raise Mismatch(f"{run}/metrics.jsonl has {min(twice)} twice")
        values |= new
    return values


def _read_checkpoint(run: Path, step: int) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Tensors as ``rank-0/weight/NAME``; and what the index of every rank says about them, and its counters."""
    folder = run / "checkpoints" / (run / "checkpoints/latest").read_text().strip()
    if (saved := json.loads((folder / "manifest.json").read_text())["step"]) != step:
        raise Mismatch(f"{folder} is the last checkpoint, of step {saved} instead of {step}")
    facts: dict[str, Any] = {}
    for rank, entry in enumerate(json.loads((folder / "index.json").read_text())):
        content = entry["content"]
        facts |= {f"rank-{rank} {fragment['name']}": fragment for fragment in content.pop("fragments")}
        facts |= {f"rank-{rank} {key}": value for key, value in content.items()}
    files = [load_file(path) for path in folder.glob("node-*.safetensors")]
    tensors = {name: tensor for stored in files for name, tensor in stored.items() if tensor.dtype == np.float32}
    return tensors, facts


def _compare_values(before: Mapping[str, Any], after: Mapping[str, Any]) -> None:
    """JSON values by their text, in which a float is exact."""
    for name in [*before, *(name for name in after if name not in before)]:
        old, new = (json.dumps(values[name]) if name in values else "absent" for values in (before, after))
        if old != new:
            raise Mismatch(f"{name} is {old} before and {new} after")


def _compare_tensors(before: Mapping[str, np.ndarray], after: Mapping[str, np.ndarray]) -> None:
    if only := sorted(before.keys() ^ after.keys()):
        raise Mismatch(f"tensor {only[0]} is only in the checkpoint {'before' if only[0] in before else 'after'}")
    for name, old in before.items():
        places = np.flatnonzero(old.view(np.uint32) != after[name].view(np.uint32))
        if places.size:
            values = f"{old[places[0]]} before and {after[name][places[0]]} after"
            raise Mismatch(f"{places.size} of {old.size} numbers of {name} differ; number {places[0]} is {values}")


def main() -> None:
    arguments = _parse_arguments()
    shards, output, steps = arguments.shards.resolve(), arguments.output.resolve(), arguments.steps
    before = Checkout("before", arguments.before, output / "before", keeps_runs=True)
    after = Checkout("after", arguments.after, output / "after", keeps_runs=False)
    print(f"before: {before.commit}\nafter:  {after.commit}, with what is not committed")
    sets = [f"data.{name}={shards / name}" for name in ("train", "valid")]
    sets += [f"data.tokenizer={shards / 'tokenizer/spm.model'}", f"schedule.warmup_steps={steps // 4}"]
    sets += [f"training.eval_interval={math.ceil(steps / 3)}", "training.eval_sequences=64"]

    def check(name: str) -> str:
        if name == SHARDS:
            after.call(name, ["verify", str(shards)])
            return "accepted"
        if name != RESUMED:
            runs = [checkout.train(name, CASES[name], sets, steps) for checkout in (before, after)]
            return compare_runs(*runs, first=1, last=steps)
        start = before.train(QUICKSTART, CASES[QUICKSTART], sets, steps)
        last = steps + math.ceil(steps / 2)
        runs = [checkout.train(name, CASES[QUICKSTART], sets, last, start=start) for checkout in (before, after)]
        return compare_runs(*runs, first=steps + 1, last=last)

    differing = []
    for name in arguments.only:
        try:
            print(f"{name}: {check(name)}", flush=True)
        except (Mismatch, OSError) as error:
            differing.append(name)
            print(f"{name}: DIFFERENT: {error}", flush=True)
    if differing:
        raise SystemExit(f"{len(differing)} of {len(arguments.only)} differ: {', '.join(differing)}")
    print(f"all {len(arguments.only)} equal")


def _parse_arguments() -> argparse.Namespace:
    names = [*CASES, RESUMED, SHARDS]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("before", type=Path, metavar="BEFORE", help="checkout whose numbers are right")
    parser.add_argument("after", type=Path, metavar="AFTER", help="checkout that should have the same ones")
    parser.add_argument("shards", type=Path, metavar="SHARDS", help="folder with train, valid and tokenizer/spm.model")
    parser.add_argument("output", type=Path, metavar="OUTPUT", help="folder for runs and logs")
    parser.add_argument("--steps", type=int, default=20, help="optimizer steps of each run (default: 20)")
    parser.add_argument("--only", nargs="+", choices=names, default=names, metavar="CASE", help=", ".join(names))
    arguments = parser.parse_args()
    if arguments.steps < 2:
        parser.error("--steps must be at least 2")
    return arguments


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    main()
