"""What is tried on the two nodes; each case is one function that says whether it held and what it found."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from two_nodes_cluster import Cluster

from data_prep.options import PrepOptions, VocabularyOptions
from data_prep.prepare import prepare
from megadeberta.config.load import load_run_config
from megadeberta.errors import EXIT_PEER_LOST, EXIT_PREEMPTED, EXIT_USAGE

CORPUS = Path(__file__).parents[1] / "data" / "sotu.txt"
NODES = ("nodeA", "nodeB")
TIMEOUT_SECONDS = 30
"""parallel.timeout_seconds of the runs that lose a node: also how long their ranks may take to meet on busy cores."""
PATIENT_SECONDS = 300
"""The same of the other runs, and how long each may take."""
LONG_STEPS, INTERVAL = 120, 10
"""Steps of a run that is interrupted between a third and the end, and its checkpoint.interval."""
# DeepSpeed's launcher polls its ranks every second; pdsh, ssh and Python's end take the rest.
_END_SECONDS = 15
_TINY = {
    "name": "two-nodes",
    "model": {
        "vocab_size": 1024,
        "hidden_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 128,
        "max_position_embeddings": 64,
        "position_buckets": 16,
        "hidden_dropout_prob": 0.1,
        "attention_probs_dropout_prob": 0.1,
    },
    "deepspeed": {
        "train_batch_size": 8,
        "train_micro_batch_size_per_gpu": 2,
        "gradient_clipping": 1.0,
        "zero_optimization": {"stage": 1},
    },
}


@dataclass(frozen=True)
class Outcome:
    """Verdict of one case, and the numbers behind it in words."""

    held: bool
    found: str


class Bench:
    """The shared folder with corpus, recipe and hostfile, and how to run on the nodes of ``cluster``."""

    cluster: Cluster

    def __init__(
        self, folder: Path, *, recipe: Path | None, overrides: tuple[str, ...], ranks_per_node: int, steps: int
    ) -> None:
        self.folder = folder
        self.ranks_per_node = ranks_per_node
        self.steps = steps
        self._base = recipe.resolve() if recipe else None
        self._overrides = [word for override in overrides for word in ("--set", override)]
        self._logs = 0
        self._references: dict[int, Path] = {}
        options = PrepOptions(corpora=(CORPUS,), output=folder / "shards", vocabulary=VocabularyOptions(size=1000))
        prepare(options, console=Console(quiet=True), plot=lambda folder, lengths: None)
        (folder / "hosts").write_text("".join(f"{name} slots={ranks_per_node}\n" for name in NODES))
        # The user's file for DeepSpeed's launcher; `megadeberta launch` adds to it.
        (folder / ".deepspeed_env").write_text("DS_ACCELERATOR=cpu\nGLOO_SOCKET_IFNAME=eth0\nOMP_NUM_THREADS=1\n")
        load_run_config(self.recipe("check", steps=steps), overrides)

    def recipe(
        self, name: str, *, steps: int, output: Path | None = None, timeout_seconds: int = PATIENT_SECONDS
    ) -> Path:
        """Write the recipe of one run, with an output folder of its own."""
        values = {"extends": str(self._base)} if self._base else dict(_TINY)
        values |= {
            "data": {
                "train": str(self.folder / "shards" / "train"),
                "valid": str(self.folder / "shards" / "valid"),
                "tokenizer": str(self.folder / "shards" / "tokenizer" / "spm.model"),
                "sequence_length": 48,
                "loader_workers": 0,
            },
            "optimizer": {"lr": 1e-3},
            "schedule": {"warmup_steps": 4},
            "training": {
                "steps": steps,
                "output_dir": str(output or self.folder / "runs" / name),
                "eval_interval": 50,
                "eval_sequences": 8,
            },
            "checkpoint": {"interval": INTERVAL},
            "logging": {"interval": 1, "tensorboard": False, "plot": False, "peak_tflops": 0.1},
            # The sums of one thread and of two differ in the last bit, and the default is the cores of the node.
            "parallel": {"timeout_seconds": timeout_seconds, "threads_per_rank": 1},
        }
        path = self.folder / f"{name}.json"
        path.write_text(json.dumps(values, indent=1))
        return path

    def launch(self, recipe: Path, *words: str) -> "Run":
        """`megadeberta launch RECIPE` on nodeA, with the overrides of the command line."""
        return self.run(sys.executable, "-m", "megadeberta", "launch", str(recipe), *self._overrides, *words)

    def deepspeed(self, recipe: Path) -> "Run":
        """DeepSpeed's launcher without `megadeberta launch` around it."""
        program = Path(sys.executable).parent / "deepspeed"
        words = ["--hostfile", "hosts", "--no_local_rank", "--module", "megadeberta", "train"]
        return self.run(str(program), *words, str(recipe), *self._overrides)

    def run(self, *words: str) -> "Run":
        """Start a command on nodeA."""
        self._logs += 1
        log = self.folder / f"log-{self._logs:02}.txt"
        environ = {**os.environ, "DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "eth0"}
        return Run(self.cluster.start("nodeA", words, environ=environ, log=log), log, time.monotonic())

    def one_node(self, steps: int) -> "Losses":
        """Losses of the run with all ranks on nodeA; trained once for each number of steps."""
        if steps not in self._references:
            recipe = self.recipe(f"one-node-{steps}", steps=steps)
            run = self.launch(recipe, "--ranks", str(len(NODES) * self.ranks_per_node))
            code = run.wait(PATIENT_SECONDS)
            if code != 0:
                raise RuntimeError(f"the run on one node ended with code {code}:\n{run.tail()}")
            self._references[steps] = self.output(recipe)
        return losses(self._references[steps])

    def output(self, recipe: Path) -> Path:
        """Output folder of a recipe."""
        return Path(json.loads(recipe.read_text())["training"]["output_dir"])

    def ranks(self, *nodes: str) -> list[int]:
        """Process ids of the training processes on these nodes, by default on all that are up."""
        names = nodes or tuple(self.cluster.nodes)
        return [pid for name in names for pid in self.cluster.nodes[name].processes("megadeberta", "train")]


Losses = dict[int, tuple[str, str]]


@dataclass
class Run:
    """A command on a node."""

    process: subprocess.Popen[bytes]
    log: Path
    started: float

    def wait(self, seconds: float) -> int | None:
        """Its exit code, or None if it has not ended by then."""
        try:
            return self.process.wait(max(0.0, seconds))
        except subprocess.TimeoutExpired:
            return None

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to the command: nsenter's only child, as pid namespaces are entered by forking."""
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
        os.kill(int(children[0]), number)

    def text(self) -> str:
        """What it has printed."""
        return self.log.read_text(errors="replace")

    def tail(self, lines: int = 25) -> str:
        """The end of what it has printed."""
        return "\n".join(self.text().splitlines()[-lines:])


def losses(output: Path) -> Losses:
    """Loss and gradient norm of every step in the metrics file, as exact text."""
    rows = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    return {row["step"]: (float.hex(row["loss"]), float.hex(row["grad_norm"])) for row in rows if "loss" in row}


def compare(found: Losses, expected: Losses) -> Outcome:
    """Equal bit for bit, or the largest relative difference."""
    if found == expected:
        steps = len(found)
        return Outcome(True, f"losses and gradient norms of {steps} steps equal those of one node, bit for bit")
    if found.keys() != expected.keys():
        return Outcome(False, f"{len(found)} steps were logged and {len(expected)} on one node")
    pairs = [
        (float.fromhex(mine), float.fromhex(other))
        for step in expected
        for mine, other in zip(found[step], expected[step], strict=True)
    ]
    worst = max(abs(mine - other) / abs(other) for mine, other in pairs)
    return Outcome(False, f"losses differ from those of one node by up to {worst:.1e} of their value")


def pdsh(bench: Bench) -> Outcome:
    """`megadeberta launch --hostfile`: same losses as on one node."""
    recipe = bench.recipe("pdsh", steps=bench.steps)
    return _compared(bench, recipe, bench.launch(recipe, "--hostfile", "hosts"))


def deepspeed(bench: Bench) -> Outcome:
    """`deepspeed --hostfile`: same losses as on one node."""
    recipe = bench.recipe("deepspeed", steps=bench.steps)
    return _compared(bench, recipe, bench.deepspeed(recipe))


def power_off(bench: Bench) -> Outcome:
    """nodeB loses its power: exit code 80, no rank left; the same command resumes."""
    recipe = bench.recipe("power-off", steps=LONG_STEPS, timeout_seconds=TIMEOUT_SECONDS)
    return _lose_node(bench, recipe, lambda: bench.launch(recipe, "--hostfile", "hosts"))


def stopped(bench: Bench) -> Outcome:
    """SIGTERM to the launcher: both nodes save, exit code 75; the same command resumes."""
    recipe = bench.recipe("stopped", steps=LONG_STEPS)
    run = bench.launch(recipe, "--hostfile", "hosts")
    _wait_for_step(bench, recipe, run)
    run.signal(signal.SIGTERM)
    told = time.monotonic()
    code = run.wait(60)
    seconds = time.monotonic() - told
    if code != EXIT_PREEMPTED or bench.ranks():
        return Outcome(False, f"exit code {code}, {len(bench.ranks())} ranks left:\n{run.tail()}")
    return _resumed(bench, recipe, f"exit code 75 after {seconds:.0f} s")


def not_shared(bench: Bench) -> Outcome:
    """An output folder that each node has for itself: one clear line, exit code 2."""
    recipe = bench.recipe("not-shared", steps=bench.steps, output=bench.folder / "own" / "mount" / "run")
    run = bench.launch(recipe, "--hostfile", "hosts")
    code = run.wait(PATIENT_SECONDS)
    lines = [line for line in run.text().splitlines() if "is not shared" in line]
    return Outcome(code == EXIT_USAGE and bool(lines), lines[0] if lines else f"exit code {code}:\n{run.tail()}")


CASES: dict[str, Callable[[Bench], Outcome]] = {
    "pdsh": pdsh,
    "deepspeed": deepspeed,
    "power-off": power_off,
    "stopped": stopped,
    "not-shared": not_shared,
}


def _compared(bench: Bench, recipe: Path, run: Run) -> Outcome:
    code = run.wait(PATIENT_SECONDS)
    if code != 0:
        return Outcome(False, f"exit code {code}:\n{run.tail()}")
    return compare(losses(bench.output(recipe)), bench.one_node(bench.steps))


def _lose_node(bench: Bench, recipe: Path, start: Callable[[], Run]) -> Outcome:
    run = start()
    _wait_for_step(bench, recipe, run)
    survivors = bench.ranks("nodeA")
    bench.cluster.power_off("nodeB")
    lost = time.monotonic()
    limit = TIMEOUT_SECONDS + _END_SECONDS
    gone = _wait_until_gone(survivors, limit)
    code = run.wait(limit + 30 - (time.monotonic() - lost))
    ended = time.monotonic() - lost
    bench.cluster.power_on("nodeB")
    if gone is None or code != EXIT_PEER_LOST or not survivors:
        return Outcome(False, f"{len(survivors)} ranks on nodeA gone after {gone} s, exit code {code}:\n{run.tail()}")
    found = (
        f"ranks on nodeA ended {gone:.0f} s after nodeB (timeout {TIMEOUT_SECONDS} s), exit code 80 at {ended:.0f} s"
    )
    return _resumed(bench, recipe, found)


def _resumed(bench: Bench, recipe: Path, found: str) -> Outcome:
    """Run the command to its end; what was interrupted must not show in any loss."""
    before = max(losses(bench.output(recipe)))
    run = bench.launch(recipe, "--hostfile", "hosts")
    code = run.wait(PATIENT_SECONDS)
    if code != 0 or "resum" not in run.text():
        return Outcome(False, f"{found}; then exit code {code}:\n{run.tail()}")
    outcome = compare(losses(bench.output(recipe)), bench.one_node(LONG_STEPS))
    return Outcome(outcome.held, f"{found}; interrupted at step {before}; {outcome.found}")


def _wait_for_step(bench: Bench, recipe: Path, run: Run) -> None:
    """Until a third of the steps is done and a checkpoint has been written."""
    metrics = bench.output(recipe) / "metrics.jsonl"
    deadline = time.monotonic() + PATIENT_SECONDS
    while not metrics.exists() or max(losses(metrics.parent), default=0) < LONG_STEPS // 3:
        if run.wait(0.05) is not None or time.monotonic() > deadline:
            raise RuntimeError(f"the run did not reach step {LONG_STEPS // 3}:\n{run.tail()}")


def _wait_until_gone(processes: Iterable[int], seconds: float) -> float | None:
    started = time.monotonic()
    left = list(processes)
    while left:
        left = [pid for pid in left if Path(f"/proc/{pid}").exists()]
        if time.monotonic() - started > seconds:
            return None
        time.sleep(0.1)
    return time.monotonic() - started
