"""What a checkpoint costs: seconds to save and to load, and bytes, beside DeepSpeed's own and a bare torch.save; and
what a step takes while one is written beside it (``checkpoint.asynchronous``), or at once.

    python benchmarks/checkpoint_cost.py [--hidden 512 --layers 6 --repeats 5 --batch 8]

One rank, ZeRO-1, fp32. The ways are taken in turn, so a busy machine slows all of them. DeepSpeed's files are neither
hashed nor synced; "+ fsync, sha256" adds that in one pass after it, which is what a checkpoint needs to be believed.
"""

import argparse
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import deepspeed
import torch
from step_models import build_ours, draw_batch, our_loss
from torch import distributed

from megadeberta.checkpoint import CheckpointStore, RunRecord, SingleProcess, WorldLayout, find_resumable
from megadeberta.checkpoint.durable import hash_file
from megadeberta.checkpoint.stages import BackgroundSave, save_at_once
from megadeberta.config.model import ModelConfig
from megadeberta.config.training import OptimizerConfig
from megadeberta.engine.build import build_engine
from megadeberta.engine.process_group import start_process_group
from megadeberta.engine.state.host_copy import HostCopy
from megadeberta.engine.state.local_parameters import whole_parameters
from megadeberta.engine.state.optimizer_state import OptimizerState
from megadeberta.engine.state.save_load import load_checkpoint, save_stages

VOCABULARY, LENGTH = 32_000, 128

RUN = RunRecord(
    world=WorldLayout(world_size=1, data_parallel=1, zero_stage=1, precision="fp32"),
    versions={},
    fingerprint={},
    config={},
)


def main() -> None:
    arguments = _parse_arguments()
    for name, value in {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1"}.items():
        os.environ.setdefault(name, value)
    os.environ.setdefault("MASTER_PORT", "29533")
    start_process_group(600.0)
    engine = _engine(arguments.hidden, arguments.layers)
    count = sum(parameter.numel() for parameter in engine.module.parameters())
    print(f"{count / 1e6:.1f} M parameters: {12 * count / 1e6:.0f} MB of weights and moments")
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        ways = _ways(engine, Path(folder))
        seconds: dict[str, list[float]] = {}
        for _ in range(arguments.repeats):
            for name, action in ways.items():
                started = time.perf_counter()
                action()
                seconds.setdefault(name, []).append(time.perf_counter() - started)
        for name, times in seconds.items():
            print(f"{name:32s} {statistics.median(times):7.2f} s   (fastest {min(times):.2f})")
        _print_steps(engine, Path(folder) / "ours", arguments)
        for path in sorted(Path(folder).iterdir()):
            size = sum(file.stat().st_size for file in (path, *path.rglob("*")) if file.is_file())
            print(f"{path.name:32s} {size / 1e6:7.0f} MB")
    distributed.destroy_process_group()


def _ways(engine: deepspeed.DeepSpeedEngine, folder: Path) -> dict[str, Callable[[], object]]:
    state = OptimizerState(engine, whole_parameters(engine.module.named_parameters()))
    store = CheckpointStore(folder / "ours", collectives=SingleProcess(), keep_last=1)
    tensors = [piece.flat.detach() for piece in state.pieces]
    tensors += [values for each in engine.basic_optimizer.state.values() for values in each.values()]

    def ours() -> None:
        save_at_once(save_stages(state, store, 1, run=RUN, collectives=SingleProcess(), required=True))

    def load() -> None:
        point = find_resumable(folder / "ours", collectives=SingleProcess(), run=RUN)
        load_checkpoint(state, point, collectives=SingleProcess())

    def native() -> None:
        shutil.rmtree(folder / "deepspeed", ignore_errors=True)
        engine.save_checkpoint(str(folder / "deepspeed"), tag="one")

    def native_durable() -> None:
        native()
        for path in (folder / "deepspeed" / "one").iterdir():
            _sync(path)
            hash_file(path)

    def bare() -> None:
        path = folder / "torch.save"
        torch.save(list({tensor.data_ptr(): tensor for tensor in tensors}.values()), path)
        _sync(path)

    return {
        "ours": ours,
        "ours, verify and load": load,
        "DeepSpeed's own": native,
        "DeepSpeed's own + fsync, sha256": native_durable,
        "DeepSpeed's own, load": lambda: engine.load_checkpoint(str(folder / "deepspeed"), tag="one"),
        "torch.save + fsync": bare,
    }


def _print_steps(engine: deepspeed.DeepSpeedEngine, folder: Path, arguments: argparse.Namespace) -> None:
    """Seconds per step over as many steps as a save beside them takes."""
    state = OptimizerState(engine, whole_parameters(engine.module.named_parameters()))
    store, copy = CheckpointStore(folder, collectives=SingleProcess(), keep_last=1), HostCopy()
    batch = draw_batch(arguments.batch, LENGTH, VOCABULARY)

    def step() -> None:
        engine.backward(our_loss(engine, batch))
        engine.step()

    def beside() -> tuple[BackgroundSave, int]:
        """The save, and how many steps it took."""
        begin = partial(save_stages, state, store, 1, run=RUN, collectives=SingleProcess(), required=True, copy=copy)
        save, steps = BackgroundSave(1, begin, drop=copy.drop), 0
        while not save.is_over:
            step()
            steps += 1
            if not save.is_busy:
                save.advance()
        return save, steps

    step()
    beside()  # the memory for the copy
    seconds: dict[str, list[float]] = {"no save": [], "one beside them": [], "one at once": []}
    waited, lengths = [], []
    for _ in range(arguments.repeats):
        for name, times in seconds.items():
            started = time.perf_counter()
            if name == "one beside them":
                save, steps = beside()
                waited.append(save.waited)
                lengths.append(steps)
            else:
                if name == "one at once":
                    save_at_once(save_stages(state, store, 1, run=RUN, collectives=SingleProcess(), required=True))
                for _ in range(steps := lengths[-1] if lengths else 4):
                    step()
            times.append((time.perf_counter() - started) / steps)
    print(f"steps of {arguments.batch} sequences of {LENGTH}; a save beside them takes {min(lengths)}-{max(lengths)}:")
    plain = statistics.median(seconds["no save"])
    for name, times in seconds.items():
        middle = statistics.median(times)
        print(f"  a step, {name:24s} {middle:7.3f} s   (fastest {min(times):.3f})   {middle / plain:.2f}x")
    print(f"  training waited {statistics.median(waited):.3f} s per save; {copy.bytes / 1e6:.0f} MB of host memory")


def _engine(hidden: int, layers: int) -> deepspeed.DeepSpeedEngine:
    """After one update, so that there are moments."""
    config = ModelConfig(
        vocab_size=VOCABULARY,
        hidden_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=hidden // 64,
        intermediate_size=4 * hidden,
    )
    block = {
        "train_batch_size": 1,
        "train_micro_batch_size_per_gpu": 1,
        "zero_optimization": {"stage": 1},
    }
    model = build_ours(config, backend="auto", device=torch.device("cpu"))
    engine = build_engine(model, OptimizerConfig(lr=1e-4), block=block, timeout_seconds=600.0)
    loss = torch.stack([parameter.square().sum() for parameter in engine.module.parameters()]).sum()
    engine.backward(loss)
    engine.step()
    return engine


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    os.fsync(descriptor)
    os.close(descriptor)


def _parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hidden", type=int, default=512)
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--batch", type=int, default=8, help="sequences of a step that a save is written beside")
    parser.add_argument("--folder", type=Path, help="where to write; default: the folder for temporary files")
    return parser.parse_args()


if __name__ == "__main__":
    main()
