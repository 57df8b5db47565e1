"""Pre-training, top to bottom: the file to read first.

One process is one rank. ``train`` joins the ranks, builds model and engine, resumes, and loops: count the targets of
the global batch, step, log, validate, save. Everything that happens at a step is a function of (recipe, step), so a
resumed run is the uninterrupted one.
"""

import os
import time
from collections.abc import Mapping
from functools import partial

import torch
from torch import distributed, nn

from launcher.environment import RankEnvironment
from megadeberta.checkpoint.lock import SharedOutputLock
from megadeberta.config.parameters import parameter_shapes
from megadeberta.config.run import RunConfig
from megadeberta.data.indexed import TokenShard
from megadeberta.data.loader import StepBatch, training_batches, validation_batches
from megadeberta.data.unigram import unigram_cross_entropy
from megadeberta.engine.build import build_engine, divider
from megadeberta.engine.collectives import TorchCollectives
from megadeberta.engine.local_parameters import LocalParameter, TensorSlice
from megadeberta.engine.mpu import ModelParallelUnit
from megadeberta.engine.peer_loss import raise_peer_loss
from megadeberta.engine.phases import training_phases
from megadeberta.engine.process_group import start_process_group
from megadeberta.engine.saving import RunCheckpoints
from megadeberta.engine.schedule import learning_rate_factor
from megadeberta.engine.signals import StopFlag
from megadeberta.engine.step import Stepper
from megadeberta.engine.weights import initial_values
from megadeberta.errors import EXIT_PREEMPTED
from megadeberta.model.attention_backend import describe_attention, select_attention
from megadeberta.model.dropout import set_sites
from megadeberta.model.initialize import fill_parameter, give_storage
from megadeberta.model.tensor_plan import shard_slice
from megadeberta.model.whole import WholeModel, build_specs
from megadeberta.observability.journal import Journal, open_journal
from megadeberta.observability.logs import set_up_logging
from megadeberta.parallel.groups import Groups, make_groups
from megadeberta.parallel.tensor.apply import TensorParallel, apply_tensor_parallel
from megadeberta.preflight import PreparedRun


def train(prepared: PreparedRun, ranks: RankEnvironment) -> int:
    """Run one rank, from the start or from the newest sound checkpoint, to the last step; the exit code.

    Raises:
        MegadebertaError: see ``megadeberta/errors.py``; the command line turns it into one line and an exit code.
    """
    set_up_logging(ranks.rank)
    config = prepared.config
    with StopFlag() as stop, raise_peer_loss():
        torch.set_num_threads(_threads(config, ranks))
        device = start_process_group(config.parallel.timeout_seconds)
        with SharedOutputLock(config.training.output_dir, TorchCollectives(device)):
            exit_code = _Run(prepared, ranks, device).loop(stop)
        distributed.destroy_process_group()
        return exit_code


class _Run:
    """The parts of one rank's run, and the loop over them."""

    def __init__(self, prepared: PreparedRun, ranks: RankEnvironment, device: torch.device) -> None:
        config = self.config = prepared.config
        self.prepared = prepared
        groups = make_groups(prepared.topology, timeout_seconds=config.parallel.timeout_seconds)
        self.data_rank = groups.place.data
        mpu = ModelParallelUnit(tensor=groups.tensor, data=groups.data) if prepared.topology.tensor > 1 else None
        engine = build_engine(
            _initialized_model(config, groups, device=device, mpu=mpu),
            config.optimizer,
            block=config.deepspeed,
            timeout_seconds=config.parallel.timeout_seconds,
            mpu=mpu,
        )
        phases = training_phases(config.objective)
        self.stepper = Stepper(engine, phases=phases, device=device, mpu=mpu)
        self.checkpoints = RunCheckpoints(
            engine,
            config,
            data_fingerprint={
                "train": prepared.data.train_content,
                "tokenizer": prepared.data.tokenizer_sha256,
            },
            collectives=TorchCollectives(device),
            parameters=_held_parameters(config, engine.module, groups),
        )
        self.done = self.checkpoints.resume()  # optimizer steps done
        self.journal = self._open_journal(ranks, device)
        self.journal.note(describe_attention(config.training.attention, device))
        self.held_out = validation_batches(
            config.data,
            config.objective,
            eval_sequences=config.training.eval_sequences,
            algebra=prepared.algebra,
            data_rank=self.data_rank,
        )

    def loop(self, stop: StopFlag) -> int:
        """Train until the last step, or until any rank is asked to stop."""
        training, steps = self.config.training, self.config.training.steps
        batches = training_batches(
            self.config.data,
            self.config.objective,
            seed=training.seed,
            algebra=self.prepared.algebra,
            data_rank=self.data_rank,
            start_step=self.done,
            total_steps=steps,
        )
        with batches, self.journal:
            started = time.monotonic()
            for item in batches:
                targets, stop_now = self.stepper.share_counts(item.micro_batches, stop_requested=stop.requested)
                if stop_now:
                    self.checkpoints.save(self.done, required=True)
                    self.journal.note(f"stopped and saved after step {self.done}; the same command resumes")
                    return EXIT_PREEMPTED
                self._step(item, targets, started)
                if self.done % training.eval_interval == 0 or self.done == steps:
                    self.journal.validation(self.done, self.stepper.evaluate(self.held_out))
                if self.done % self.config.checkpoint.interval == 0 or self.done == steps:
                    self.checkpoints.save(self.done, required=self.done == steps)
                started = time.monotonic()
            self.journal.note(f"done after step {self.done}; checkpoints and curves are in {training.output_dir}")
        return 0

    def _step(self, item: StepBatch, targets: Mapping[str, int], started: float) -> None:
        config = self.config
        factor = learning_rate_factor(config.schedule, step=item.step, total_steps=config.training.steps)
        lr = config.optimizer.lr * factor
        result = self.stepper.train_step(item.micro_batches, step=item.step, targets=targets, lr=lr)
        self.done = item.step + 1
        self.journal.step(self.done, result, lr=lr, seconds=time.monotonic() - started)

    def _open_journal(self, ranks: RankEnvironment, device: torch.device) -> Journal:
        """Logs, metrics and plots of rank 0; on the other ranks a journal that writes nothing."""
        data = self.config.data
        baseline = None
        if ranks.rank == 0 and data.valid is not None:
            with TokenShard.open(data.train) as train_shard, TokenShard.open(data.valid) as valid_shard:
                baseline = unigram_cross_entropy(train_shard, valid_shard, num_pieces=self.prepared.data.num_pieces)
        return open_journal(
            self.config,
            done=self.done,
            unigram=baseline,
            world_size=ranks.world_size,
            device=device,
            is_writer=ranks.rank == 0,
        )


def _initialized_model(
    config: RunConfig, groups: Groups, *, device: torch.device, mpu: ModelParallelUnit | None
) -> WholeModel:
    """This rank's shard of the model with initial values by parameter name, or those of an imported checkpoint.

    No rank ever holds more of a parameter than its shard.
    """
    seed, folder = config.training.seed, config.training.init_from
    with torch.device("meta"):
        specs = build_specs(config.model, config.objective)
        model = WholeModel(specs, recompute=config.parallel.activation_checkpointing)
    select_attention(model, config.training.attention, device)
    if groups.topology.tensor > 1:
        plan = TensorParallel(groups.tensor, config.model.vocab_size, config.parallel.sequence_parallel)
        apply_tensor_parallel(model, plan)
    set_sites(model.named_modules(), seed=seed)
    if folder is None:
        values = partial(fill_parameter, seed=seed, std=config.model.initializer_range)
    else:
        values = initial_values(model, folder, tokenizer=config.data.tokenizer)
    divide = divider(config.deepspeed, mpu=mpu)

    def fill(name: str, parameter: nn.Parameter) -> None:
        values(name, parameter)
        divide(parameter)

    give_storage(model, fill)
    return model


def _held_parameters(config: RunConfig, model: nn.Module, groups: Groups) -> list[LocalParameter]:
    """What this rank holds of every parameter, as checkpoints describe it."""
    shapes = parameter_shapes(config.model, config.objective)
    held = []
    for name, parameter in model.named_parameters():
        shard = shard_slice(name, shapes[name], tensor=groups.topology.tensor, rank=groups.place.tensor)
        part = None if shard is None else TensorSlice(shard.dim, shard.start, shard.stop)
        is_owner = shard is not None or groups.place.tensor == 0
        held.append(LocalParameter(name, parameter, tuple(shapes[name]), part, is_owner))
    return held


def _threads(config: RunConfig, ranks: RankEnvironment) -> int:
    """CPU threads of this rank: as configured, else its share of the cores it may use."""
    cores = len(os.sched_getaffinity(0))
    return config.parallel.threads_per_rank or max(1, cores // ranks.local_world_size)
