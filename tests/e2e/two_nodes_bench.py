"""What is run on the two nodes, and what it left: recipes, the commands of every launcher, losses."""

import json
import os
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from two_nodes_cluster import Cluster

from megadeberta.config.load import load_run_config
from megadeberta.data_prep.options import PrepOptions, VocabularyOptions
from megadeberta.data_prep.prepare import prepare

CORPUS = Path(__file__).parents[1] / "data" / "sotu.txt"
NODES = ("nodeA", "nodeB")
CHECKPOINT_INTERVAL = 5
PATIENT_SECONDS = 300
"""How long a run may take, and its parallel.timeout_seconds where no node is lost."""
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
class Overrides:
    """``--set`` values of all runs, and further ones of the run on one node that the others are compared with."""

    everywhere: tuple[str, ...] = ()
    reference_only: tuple[str, ...] = ()


class Bench:
    """The shared folder with corpus, recipe and hostfile, and how to run on the nodes of ``cluster``."""

    cluster: Cluster
    tolerance = 0.0
    """Largest relative difference of a loss from that of the run on one node."""

    def __init__(
        self, folder: Path, *, recipe: Path | None, overrides: Overrides, ranks_per_node: int, steps: int
    ) -> None:
        self.folder = folder
        self.ranks_per_node = ranks_per_node
        self.steps = steps
        self._base = recipe.resolve() if recipe else None
        self._overrides = [word for override in overrides.everywhere for word in ("--set", override)]
        self._reference_only = [word for override in overrides.reference_only for word in ("--set", override)]
        self._logs = 0
        self._references: dict[int, Path] = {}
        options = PrepOptions(corpora=(CORPUS,), output=folder / "shards", vocabulary=VocabularyOptions(size=1000))
        prepare(options, console=Console(quiet=True), plot=lambda folder, lengths: None)
        (folder / "tmp").mkdir()
        (folder / "hosts").write_text("".join(f"{name} slots={ranks_per_node}\n" for name in NODES))
        # The user's file for DeepSpeed's launcher; `megadeberta launch` adds to it.
        (folder / ".deepspeed_env").write_text("DS_ACCELERATOR=cpu\nGLOO_SOCKET_IFNAME=eth0\nOMP_NUM_THREADS=1\n")
        for values in (overrides.everywhere, overrides.everywhere + overrides.reference_only):
            load_run_config(self.recipe("check", steps=steps), values)

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
            "checkpoint": {"interval": CHECKPOINT_INTERVAL},
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
        words = ["--hostfile", "hosts", "--module", "megadeberta", "train", str(recipe), *self._overrides]
        return self.run(_program("deepspeed"), *words)

    def torchrun(self, recipe: Path) -> list["Run"]:
        """torchrun, started by hand on each node."""
        meet = ["--master-addr", NODES[0], "--master-port", "29500"]
        shape = ["--nnodes", str(len(NODES)), "--nproc-per-node", str(self.ranks_per_node)]
        train = ["-m", "megadeberta", "train", str(recipe), *self._overrides]
        return [
            self.run(_program("torchrun"), *shape, *meet, "--node-rank", str(number), *train, node=node)
            for number, node in enumerate(NODES)
        ]

    def mpiexec(self, recipe: Path) -> "Run":
        """MPICH's mpiexec, which goes to the nodes by ssh."""
        ranks = ["-n", str(len(NODES) * self.ranks_per_node), "-ppn", str(self.ranks_per_node)]
        words = ["-hosts", ",".join(NODES), *ranks, "-genv", "MASTER_ADDR", NODES[0], sys.executable]
        return self.run(_program("mpiexec"), *words, "-m", "megadeberta", "train", str(recipe), *self._overrides)

    def run(self, *words: str, node: str = NODES[0]) -> "Run":
        """Start a command on a node, by default on nodeA."""
        self._logs += 1
        log = self.folder / f"log-{self._logs:02}.txt"
        environ = {**os.environ, "DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "eth0"}
        # What a killed launcher leaves behind goes with the folder.
        environ["TMPDIR"] = str(self.folder / "tmp")
        return Run(self.cluster.start(node, words, environ=environ, log=log), log)

    def one_node(self, steps: int) -> "Losses":
        """Losses of the run with all ranks on nodeA; trained once for each number of steps."""
        if steps not in self._references:
            recipe = self.recipe(f"one-node-{steps}", steps=steps)
            ranks = str(len(NODES) * self.ranks_per_node)
            run = self.launch(recipe, *self._reference_only, "--ranks", ranks)
            code = run.wait(PATIENT_SECONDS)
            if code != 0:
                raise RuntimeError(f"the run on one node ended with code {code}:\n{run.tail()}")
            self._references[steps] = self.output(recipe)
        return losses(self._references[steps])

    def output(self, recipe: Path) -> Path:
        """Output folder of a recipe."""
        return Path(json.loads(recipe.read_text())["training"]["output_dir"])

    def ranks(self, *nodes: str) -> list[int]:
        """Process ids of the ranks on these nodes, by default on all that are up."""
        names = nodes or tuple(self.cluster.nodes)
        return [pid for name in names for pid in self.cluster.nodes[name].processes_with("RANK")]


def _program(name: str) -> str:
    """A console script of this environment."""
    return str(Path(sys.executable).parent / name)


Losses = dict[int, tuple[str, str]]


@dataclass
class Run:
    """A command on a node."""

    process: subprocess.Popen[bytes]
    log: Path

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
