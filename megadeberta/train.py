"""Pre-training, top to bottom: the file to read first.

One process is one rank. ``train`` joins the ranks, builds model and engine, resumes, and loops: count the targets of
the global batch, step, log, validate, save. Everything that happens at a step is a function of (recipe, step), so a
resumed run is the uninterrupted one.
"""

import time
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from datetime import UTC, datetime
from functools import partial

import torch
from torch import Tensor, distributed

from megadeberta.assembly import Assembly, assemble
from megadeberta.checkpoint.lock import SharedOutputLock
from megadeberta.checkpoint.manifest import Origin, RunRecord
from megadeberta.checkpoint.rate_jump import changed_rates, refuse_jump
from megadeberta.checkpoint.resume import ResumePoint
from megadeberta.checkpoint.stages import BackgroundSave
from megadeberta.config.changes import changed_settings
from megadeberta.config.schedule import learning_rate_factor
from megadeberta.config.waiting import Waiting
from megadeberta.data.blend_history import blend_lines, fractions_of
from megadeberta.data.loader import StepBatch, steps_without_data, training_batches, validation_batches
from megadeberta.data.unigram import unigram_cross_entropy
from megadeberta.engine.collectives import TorchCollectives
from megadeberta.engine.device_memory import take_peak_memory
from megadeberta.engine.launched import LaunchedStep
from megadeberta.engine.peer_loss import raise_peer_loss
from megadeberta.engine.peer_watch import watch_peers
from megadeberta.engine.phases import FORWARD
from megadeberta.engine.process_group import choose_threads, start_process_group
from megadeberta.engine.profile import StepProfile
from megadeberta.engine.replicas import ReplicaCheck
from megadeberta.engine.same_start import check_same_start
from megadeberta.engine.signals import StopFlag
from megadeberta.engine.spikes import LossSpikeError
from megadeberta.engine.state.run_checkpoints import RunCheckpoints, find_own_checkpoint, run_record
from megadeberta.engine.step import Flags
from megadeberta.errors import EXIT_PREEMPTED, CheckpointError
from megadeberta.observability.journal import Journal, open_journal
from megadeberta.observability.logs import set_up_logging
from megadeberta.observability.metrics import METRICS_FILE, read_metrics
from megadeberta.observability.resume_note import lost_checkpoints, resume_lines
from megadeberta.preflight.blend import continued_blend
from megadeberta.preflight.run import PreparedRun
from megadeberta.preflight.summary import start_lines
from megadeberta.rank.environment import RankEnvironment
from megadeberta.rank.heartbeat import Heartbeat, Phase, host_clock

_STEPS_THAT_COMPILE, _STEPS_THAT_COMPILE_LAYERS = 2, 50
"""After the start: kernels are compiled in the first ones, and a compiled layer again for new numbers of targets."""


def train(prepared: PreparedRun, ranks: RankEnvironment, heartbeat: Heartbeat) -> int:
    """Run one rank, from the start or from the newest sound checkpoint, to the last step; the exit code.

    Args:
        heartbeat: is told where the loop is.

    Raises:
        MegadebertaError: see ``megadeberta/errors.py``; the command line turns it into one line and an exit code.
    """
    set_up_logging(ranks.rank)
    config = prepared.config
    with StopFlag() as stop, raise_peer_loss():
        torch.set_num_threads(choose_threads(config.parallel.threads_per_rank, ranks.local_world_size))
        device = start_process_group(config.parallel.timeout_seconds)
        record = run_record(config, world_size=ranks.world_size, data_fingerprint=prepared.data.fingerprint)
        with watch_peers(device), SharedOutputLock(config.training.output_dir, TorchCollectives(device)):
            check_same_start(record, TorchCollectives(device))
            exit_code = _Run(prepared, ranks, device, record, heartbeat).loop(stop)
        distributed.destroy_process_group()
        return exit_code


class _Run:
    """The parts of one rank's run, and the loop over them."""

    def __init__(
        self,
        prepared: PreparedRun,
        ranks: RankEnvironment,
        device: torch.device,
        record: RunRecord,
        heartbeat: Heartbeat,
    ) -> None:
        config = self.config = prepared.config
        self.prepared = prepared
        self._quiet = ranks.rank != 0
        self._device = device
        self._heartbeat = heartbeat
        self.profile = StepProfile(
            config.logging.profile_steps, output=config.training.output_dir, rank=ranks.rank, device=device
        )
        found = self._find_checkpoint(record)
        assembly = self.assembly = self._assemble(found)
        self.stepper = assembly.stepper
        self.checkpoints = RunCheckpoints(
            assembly.stepper.engine,
            config,
            run=record,
            collectives=TorchCollectives(device),
            parameters=assembly.parameters,
            continue_blend=partial(continued_blend, config, prepared.data.train),
        )
        with Waiting("reading the checkpoint, if there is one", quiet=self._quiet):
            self.done = self.checkpoints.resume(found)  # optimizer steps done
        if self.checkpoints.begins:
            self._refuse_lost_checkpoints(TorchCollectives(device))
        self.journal = self._open_journal(ranks, device)
        self.checkpoints.tell = self._tell_saved
        if ranks.rank == 0:
            self._tell_resume()
        self._tell_kernels_and_blend()
        self.replicas = self._replica_check()
        self.held_out = self._validation_batches()
        self._under_way: tuple[int, LaunchedStep, float] | None = None  # number of the step, and its learning rate
        self._started = time.monotonic()

    def _find_checkpoint(self, record: RunRecord) -> ResumePoint | None:
        with Waiting("looking for a checkpoint, verifying it", quiet=self._quiet):
            found = find_own_checkpoint(self.config, run=record, collectives=TorchCollectives(self._device))
        if found is not None:  # perhaps an older one than was looked at before the start
            refuse_jump(self.config, found.manifest.run.config, found.step, checkpoint=str(found.folder))
        return found

    def _assemble(self, found: ResumePoint | None) -> Assembly:
        """``found``: the checkpoint that will be loaded, so that no weight is drawn."""
        loads = found is not None or self.config.training.continue_from is not None
        with Waiting("building the model, trying kernels", quiet=self._quiet):
            return assemble(self.config, self.prepared.topology, self._device, loads_checkpoint=loads)

    def _refuse_lost_checkpoints(self, collectives: TorchCollectives) -> None:
        """Stop where the log says that there must be a checkpoint and none is there: starting anew would erase it."""
        output = self.config.training.output_dir
        records = read_metrics(output / METRICS_FILE) if collectives.rank == 0 else []
        keep = self.config.checkpoint
        # Beside training the first one may take until the second is due.
        steps = keep.interval * 2 if keep.asynchronous else keep.interval
        problem = lost_checkpoints(records, interval=steps, output=output, begun=self.done)
        if text := collectives.broadcast_text(problem):
            raise CheckpointError(text)

    def loop(self, stop: StopFlag) -> int:
        """Train until the last step, or until any rank is asked to stop.

        What a step did is read when the next one is about to be launched, so that the ranks agree on that one while
        the device still works; before anything else that needs it, it is read at once.
        """
        with self.journal, self._profiled(), self.checkpoints:
            self._measure()
            while True:
                with self._training_batches() as batches:
                    try:
                        return self._train(batches, stop)
                    except LossSpikeError as error:
                        spike = error
                self._go_back(spike)

    def _train(self, batches: Iterator[StepBatch], stop: StopFlag) -> int:
        """
        Raises:
            LossSpikeError: on every rank.
        """
        self._started = time.monotonic()
        for item in self._heartbeat.steps(self.stepper.clock.waited_for(batches), first=self.done + 1):
            flags = Flags(stop.requested, self.checkpoints.is_writing, self.checkpoints.is_due_by_time)
            targets, any_rank = self.stepper.share_counts(item.micro_batches, flags)
            self._finish_step()
            if any_rank.stops:
                return self._stop()
            if not any_rank.writes and self.checkpoints.advance():
                self._started = time.monotonic()
            self._launch_step(item, targets)
            self._do_what_is_due(item.step + 1, saves=any_rank.saves)
        self._heartbeat.enter(Phase.END, self.done)
        output = self.config.training.output_dir
        self.journal.note(f"done after step {self.done}; checkpoints and curves are in {output}")
        return 0

    def _go_back(self, spike: LossSpikeError) -> None:
        """To the last checkpoint, from which other samples follow."""
        self._heartbeat.enter(Phase.START, self.done)  # its deadline is that of reading a checkpoint
        with Waiting("going back to a checkpoint", quiet=self._quiet):
            self.done, windows = self.checkpoints.go_back(spike)
        samples = f"samples {windows[-1].first_sample} to {windows[-1].stop_sample - 1}"
        self.journal.warn(f"{spike}: going on from step {self.done}; {samples} are passed over")
        self.journal.go_back(self.done, windows)

    def _stop(self) -> int:
        self._heartbeat.enter(Phase.SAVE, self.done)
        self._compare_replicas()
        started = time.monotonic()
        self.checkpoints.save(self.done, required=True)
        self.journal.saved(self.done, seconds=time.monotonic() - started, committed=True)
        self.journal.note(f"stopped and saved after step {self.done}; the same command resumes")
        return EXIT_PREEMPTED

    def _do_what_is_due(self, number: int, *, saves: bool) -> None:
        """Compare, validate, save after step ``number``, which was just launched, where it is time for that.

        ``saves``: by the clock it is.
        """
        training, is_last = self.config.training, number == self.config.training.steps
        validates = number % training.eval_interval == 0 or is_last
        saves = saves or number % self.config.checkpoint.interval == 0 or is_last
        compares = self.replicas is not None and (saves or number % self.replicas.every == 0)
        if not (validates or saves or compares):
            return
        self._finish_step()
        if compares:
            self._compare_replicas()
        if validates:
            self._heartbeat.enter(Phase.EVALUATE, number)
            self._validate()
        if saves:
            self._heartbeat.enter(Phase.SAVE, number)
            self._save(required=is_last)
        self._started = time.monotonic()

    @contextmanager
    def _profiled(self) -> Iterator[None]:
        """A window that the run leaves early is written up to there."""
        try:
            yield
        finally:
            self.profile.close(self.done)

    def _validate(self) -> None:
        started = time.monotonic()
        with Waiting("validating", quiet=self._quiet):
            scored = self.stepper.evaluate_sources(self.held_out)
        self.journal.validation(self.done, scored, seconds=time.monotonic() - started)

    def _replica_check(self) -> ReplicaCheck | None:
        every, groups = self.config.numerics.replicas_every, self.assembly.groups
        if every is None or groups.topology.data == 1:
            return None
        named = self.stepper.engine.module.named_parameters()
        return ReplicaCheck(named, every=every, data_group=groups.data, place=groups.place, device=self._device)

    def _compare_replicas(self) -> None:
        if self.replicas is not None:
            self.replicas.compare(self.done)

    def _save(self, *, required: bool) -> None:
        with Waiting("saving a checkpoint", quiet=self._quiet):
            self.checkpoints.finish()
            started = time.monotonic()
            if self.config.checkpoint.asynchronous and not required:
                self.checkpoints.save_beside(self.done)
                return
            committed = self.checkpoints.save(self.done, required=required)
        self.journal.saved(self.done, seconds=time.monotonic() - started, committed=committed)

    def _tell_saved(self, save: BackgroundSave) -> None:
        """A checkpoint that was written beside training is committed, or could not be."""
        self.journal.saved(self.done, seconds=save.waited, committed=save.committed is not None)
        if save.committed is not None:
            took = f"in {save.seconds:.1f} s, of which training waited {save.waited:.2f} s"
            self.journal.note(f"saved step {save.step} beside training {took}")

    def _measure(self) -> None:
        clock = host_clock() if self._device.type == "cpu" else None
        compiles = self.config.training.compile != "none"
        self._heartbeat.measure(clock, compile_steps=_STEPS_THAT_COMPILE_LAYERS if compiles else _STEPS_THAT_COMPILE)

    def _launch_step(self, item: StepBatch, targets: Mapping[str, int]) -> None:
        config = self.config
        factor = learning_rate_factor(config.schedule, step=item.step, total_steps=config.training.steps)
        lr = config.optimizer.lr * factor
        self.profile.before_step(item.step + 1)
        self.stepper.clock.names_phases = self.profile.is_running
        launched = self.stepper.launch_step(item.micro_batches, step=item.step, targets=targets, lr=lr)
        self._under_way = (item.step + 1, launched, lr)

    def _finish_step(self) -> None:
        """Read what the last step did, if that has not been done."""
        if self._under_way is None:
            return
        (number, launched, lr), self._under_way = self._under_way, None
        result = launched.result()
        now = time.monotonic()
        self.done = number
        if self._device.type == "cuda":
            self._heartbeat.worked(result.phases.get(FORWARD, 0.0))
        memory, seconds = take_peak_memory(self._device), now - self._started
        if result.refused:
            samples = self.checkpoints.samples_of(self.done)
            self.journal.refused(self.done, result.refused, samples=samples, seconds=seconds)
        else:
            self.journal.step(self.done, result, lr=lr, seconds=seconds, memory=memory)
        self._started = now
        if result.applied:
            self.checkpoints.spikes.add(self.done, result.loss)
        if self.profile.is_running:
            self.profile.after_step(self.done)
            self._started = time.monotonic()  # writing the trace is no part of the next step

    def _training_batches(self) -> AbstractContextManager[Iterator[StepBatch]]:
        """This rank's share of the steps to come."""
        training = self.config.training
        if not self.assembly.reads_data:
            return nullcontext(steps_without_data(start_step=self.done, total_steps=training.steps))
        return training_batches(
            self.config.data,
            self.config.objective,
            seed=training.seed,
            algebra=self.prepared.algebra,
            data_rank=self.assembly.data_rank,
            start_step=self.done,
            total_steps=training.steps,
            segments=self.checkpoints.blend,
            passed_over=self.checkpoints.spikes.windows,
            batch_stages=training.batch_stages,
            timeout=self.config.parallel.timeout_seconds,
        )

    def _validation_batches(self) -> dict[str, list[dict[str, Tensor]]]:
        """This rank's share of the validation sequences, by the name of their token file."""
        names = list(self.config.data.valid_prefixes) or [""]
        if not self.assembly.reads_data:
            return {name: [] for name in names}
        return {
            name: validation_batches(
                self.config.data,
                self.config.objective,
                eval_sequences=self.config.training.eval_sequences,
                algebra=self.prepared.algebra,
                data_rank=self.assembly.data_rank,
                source=name,
            )
            for name in names
        }

    def _open_journal(self, ranks: RankEnvironment, device: torch.device) -> Journal:
        """Logs, metrics and plots of rank 0; on the other ranks a journal that writes nothing."""
        data = self.config.data
        baseline = None
        if ranks.rank == 0 and data.valid is not None:
            segments = self.checkpoints.blend
            fractions = fractions_of(segments[-1]) if segments else {}
            baseline = unigram_cross_entropy(data, fractions, num_pieces=self.prepared.data.num_pieces)
        return open_journal(
            self.config,
            done=self.done,
            unigram=baseline,
            world_size=ranks.world_size,
            device=device,
            is_writer=ranks.rank == 0,
            summary=start_lines(self.prepared),
        )

    def _tell_kernels_and_blend(self) -> None:
        attention = self.assembly.attention
        self.journal.note(attention.line)
        blend = blend_lines(self.checkpoints.blend, self.config.batches)
        for line in [*_describe_origin(self.checkpoints.origin), *blend]:
            self.journal.note(line)
        self.journal.kernels(attention.taken, resumed=self.done > 0)

    def _tell_resume(self) -> None:
        """From where the run goes on, and with what other settings than before."""
        point = self.checkpoints.resumed
        if point is None:
            return
        config, saved = self.config, point.manifest.run.config
        # A run's folder is the one above its checkpoints.
        output = point.folder.parents[1] if self.checkpoints.begins else config.training.output_dir
        records = [record for record in read_metrics(output / METRICS_FILE) if record["step"] <= point.step]
        for line in resume_lines(
            point.folder,
            step=point.step,
            total_steps=config.training.steps,
            created=point.manifest.created,
            records=records,
            now=datetime.now(UTC),
        ):
            self.journal.note(line)
        changes = changed_settings(saved, config.model_dump(mode="json"))
        if changes:
            self.journal.note(f"changed since then: {changes}")
        for warning in changed_rates(config, saved, point.step):
            self.journal.warn(warning)


def _describe_origin(origin: Origin | None) -> list[str]:
    """The checkpoint of another run that this one began with, and what is not the same since then."""
    if origin is None:
        return []
    changed = "".join(f"; {key} was {value}" for key, value in origin.changed.items())
    return [f"this run began with {origin.checkpoint}, step {origin.step} (sha256 {origin.manifest_sha256}){changed}"]
