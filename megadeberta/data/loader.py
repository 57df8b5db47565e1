"""Ready batches: which samples each rank gets at each step, read, masked and cut into micro batches.

Everything in a batch is a function of the step and the recipe. The state of the data is therefore one number, the next
step, and a run that resumes, with other ranks, micro batch or workers, goes on with the samples and masks it would have
had.
"""

# N sequences of a rank at a step · B micro batch · L length · Q slots for masked tokens

import atexit
import functools
import math
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, get_worker_info
from torch.utils.data.dataloader import _MultiProcessingDataLoaderIter

from megadeberta.batch import FIELDS, SAMPLE_NUMBERS, Batch, batch_fields
from megadeberta.config.batches import BatchSizes, BatchStage
from megadeberta.config.blend import BlendSegment
from megadeberta.config.data import DataConfig
from megadeberta.config.deepspeed_block import BatchAlgebra
from megadeberta.config.objective import ObjectiveConfig
from megadeberta.config.spikes import PassedOver, sample_after
from megadeberta.data.counter_random import stream_key
from megadeberta.data.packing import document_starts
from megadeberta.data.samples import TrainingSamples
from megadeberta.data.sequences import open_reader
from megadeberta.data.targets import Targets, load_targets
from megadeberta.data.tokenizer import PAD_ID, load_tokenizer
from megadeberta.data.workers import exit_with_the_rank, is_loss_of_a_worker, stop_workers, worker_context
from megadeberta.errors import MegadebertaError, PeerLostError

_STEPS_AHEAD = 4  # of each worker
_STEPS_READ_AHEAD = 3  # of each worker, from remote token files, the step itself included
_VALIDATION_SEED = 0  # not the run's: losses of runs with other seeds stay comparable


@dataclass(frozen=True)
class StepBatch:
    """One rank's sequences of an optimizer step: ``accumulation`` micro batches, each with the fields of ``batch.py``.

    Q differs between micro batches.
    """

    step: int
    micro_batches: list[Batch]


@dataclass(frozen=True)
class _PackedStep:
    """A step on its way from a worker: one shared-memory block, whatever the number of micro batches."""

    step: int
    slots: tuple[int, ...]  # Q of each micro batch
    words: Tensor  # int32: for each micro batch the fields that are made with the targets, flattened


class TrainingBatches(Dataset[_PackedStep | MegadebertaError]):
    """Item ``step`` is one rank's share of that optimizer step. Holds no open file until its first item."""

    def __init__(
        self,
        data: DataConfig,
        objective: ObjectiveConfig,
        *,
        seed: int,
        algebra: BatchAlgebra,
        data_rank: int,
        segments: Sequence[BlendSegment] = (),
        passed_over: Sequence[PassedOver] = (),
        batch_stages: Sequence[BatchStage] = (),
    ) -> None:
        self._passed_over = tuple(passed_over)
        self._batches = BatchSizes(tuple(batch_stages), algebra.global_batch)
        self._data = data
        self._samples = TrainingSamples(data, seed, segments)
        self._algebra = algebra
        self._data_rank = data_rank
        self._objective = objective
        self._targets = _load_targets(data, objective)
        self._fields = batch_fields(data, objective)
        self._sent = tuple(name for name in self._fields if FIELDS[name].from_targets)

    def __getitem__(self, step: int) -> _PackedStep | MegadebertaError:
        """The packed step, or the error: raised in a worker, it would reach the user wrapped in a traceback."""
        try:
            return self._pack(step)
        except MegadebertaError as error:
            return error

    def samples(self, step: int) -> NDArray[np.int64]:
        """This rank's global samples at a step, in the order of its micro batches: ``[N]``."""
        algebra = self._algebra
        accumulation = self._batches.at(step) // (algebra.micro_batch * algebra.data_parallel)
        micro_batches = np.arange(accumulation)[:, None] * algebra.data_parallel + self._data_rank
        samples = self._first_sample(step) + micro_batches * algebra.micro_batch + np.arange(algebra.micro_batch)
        return samples.reshape(-1)

    def _first_sample(self, step: int) -> int:
        return sample_after(self._batches.samples(step), self._passed_over)

    def unpack(self, packed: _PackedStep) -> StepBatch:
        """The micro batches of a packed step."""
        batch = self._algebra.micro_batch
        shapes = [self._shape(name, slots) for slots in packed.slots for name in self._sent]
        sent = packed.words.long().split([math.prod(shape) for shape in shapes])
        parts = iter([part.view(shape) for part, shape in zip(sent, shapes, strict=True)])
        places = self.samples(packed.step) - self._first_sample(packed.step)
        numbers = ((packed.step << 32) + places).reshape(-1, batch)
        micro_batches = [
            _complete({name: next(parts) for name in self._sent}, self._fields, numbers=of_batch)
            for of_batch in numbers
        ]
        return StepBatch(packed.step, micro_batches)

    def _shape(self, name: str, slots: int) -> tuple[int, ...]:
        batch = self._algebra.micro_batch
        return {"token": (batch, self._data.sequence_length), "slot": (batch, slots), "sample": (batch,)}[
            FIELDS[name].axis
        ]

    def _pack(self, step: int) -> _PackedStep:
        samples = self.samples(step)
        worker = get_worker_info()
        stride = worker.num_workers if worker else 1  # a worker makes every stride-th step
        for later in range(_STEPS_READ_AHEAD):
            self._samples.read_ahead(self.samples(step + later * stride))
        targets = self._targets
        if self._objective.mask_rate_schedule is not None:
            targets = targets.at_rate(self._objective.mask_rate_at(step))
        made = targets(*self._samples.read(samples))
        size = self._algebra.micro_batch
        batches = [made.rows(start, start + size) for start in range(0, len(samples), size)]
        fields = [batch.field(name).reshape(-1) for batch in batches for name in self._sent]
        words = np.concatenate(fields, dtype=np.int32, casting="same_kind")
        return _PackedStep(step, tuple(batch.masked_labels.shape[1] for batch in batches), torch.from_numpy(words))


class StepIterator(Iterator[StepBatch]):
    """Ready steps in order. Close it (or use ``with``) when leaving before the last step."""

    def __init__(self, batches: TrainingBatches, steps: range, *, workers: int, timeout: float = 0) -> None:
        """``timeout``: seconds until a worker that gives nothing counts as lost; 0 = never."""
        loader = DataLoader(
            batches,
            batch_size=None,
            sampler=steps,
            num_workers=workers,
            prefetch_factor=_STEPS_AHEAD if workers else None,
            multiprocessing_context=worker_context(preload=__name__) if workers else None,
            timeout=timeout if workers else 0,
            worker_init_fn=exit_with_the_rank,
            generator=torch.Generator(),  # else every start draws from the global generator, and a resumed run differs
        )
        self._dataset = batches
        self._workers = workers
        self._steps: Iterator[_PackedStep | MegadebertaError] = iter(loader)
        # The workers ignore SIGTERM, so somebody must tell them when the interpreter ends. The reference is weak,
        # so that dropping the iterator is enough otherwise.
        self._at_exit = functools.partial(_close_if_alive, weakref.ref(self))
        atexit.register(self._at_exit)

    def __next__(self) -> StepBatch:
        try:
            packed = next(self._steps)
        except StopIteration:
            raise
        except Exception as error:
            self.close()  # whatever it is: the rank would wait for its workers when it ends, and they for more work
            if not (self._workers and is_loss_of_a_worker(error)):
                raise
            raise PeerLostError(
                f"a process that prepares batches is lost ({error}); often memory ran out (`dmesg` names it), /dev/shm "
                "is full or a disk does not answer. The same command resumes; data.loader_workers=0 does without "
                "these processes"
            ) from error
        if isinstance(packed, MegadebertaError):
            self.close()
            raise packed
        return self._dataset.unpack(packed)

    def __enter__(self) -> "StepIterator":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Stop the workers; no step comes after this."""
        atexit.unregister(self._at_exit)
        if isinstance(self._steps, _MultiProcessingDataLoaderIter):
            stop_workers(self._steps)
        self._steps = iter(())


def training_batches(
    data: DataConfig,
    objective: ObjectiveConfig,
    *,
    seed: int,
    algebra: BatchAlgebra,
    data_rank: int,
    start_step: int,
    total_steps: int,
    segments: Sequence[BlendSegment] = (),
    passed_over: Sequence[PassedOver] = (),
    batch_stages: Sequence[BatchStage] = (),
    timeout: float = 0,
) -> StepIterator:
    """This rank's share of steps ``start_step`` to ``total_steps - 1``.

    Args:
        segments: of a blend, from ``continue_blend``; empty where ``data.train`` is one prefix.
        passed_over: samples that no step trains on.
        batch_stages: batches of the first steps, each a multiple of the micro batch on every data-parallel rank;
            ``algebra`` has that of the others.
        timeout: seconds to wait for a worker process; 0 = without end.

    Raises:
        DataError: now, or from the iterator when a shard turns out damaged.
        PeerLostError: from the iterator, when a worker process died or gave nothing for ``timeout`` seconds.
    """
    batches = TrainingBatches(
        data,
        objective,
        seed=seed,
        algebra=algebra,
        data_rank=data_rank,
        segments=segments,
        passed_over=passed_over,
        batch_stages=batch_stages,
    )
    return StepIterator(batches, range(start_step, total_steps), workers=data.loader_workers, timeout=timeout)


def validation_batches(
    data: DataConfig,
    objective: ObjectiveConfig,
    *,
    eval_sequences: int,
    algebra: BatchAlgebra,
    data_rank: int,
    source: str = "",
) -> list[Batch]:
    """This rank's share of the first ``eval_sequences`` validation chunks, masked alike at every call and in every run.

    Ranks may get different numbers of batches, or none; the last batch may be smaller than the micro batch.

    Args:
        source: name of a validation token file; the only one has the name "".
    """
    prefix = data.valid_prefixes.get(source)
    if prefix is None:
        return []
    reader = open_reader(prefix, data)
    try:
        total = min(eval_sequences, reader.num_chunks)
        first, end = (total * rank // algebra.data_parallel for rank in (data_rank, data_rank + 1))
        if first == end:
            return []
        chunks = np.arange(first, end)
        keys = stream_key(_VALIDATION_SEED, "validation mask", chunks)
        made = _load_targets(data, objective)(reader.read(chunks), keys)
    finally:
        reader.close()
    size, fields = algebra.micro_batch, batch_fields(data, objective)
    found = []
    for start in range(0, len(chunks), size):
        rows = made.rows(start, start + size)
        sent = {name: torch.tensor(rows.field(name)) for name in fields if FIELDS[name].from_targets}
        found.append(_complete(sent, fields, numbers=chunks[start : start + size]))
    return found


def steps_without_data(*, start_step: int, total_steps: int) -> Iterator[StepBatch]:
    """The same steps for a rank that is sent what it needs by other ranks."""
    return (StepBatch(step, []) for step in range(start_step, total_steps))


def _load_targets(data: DataConfig, objective: ObjectiveConfig) -> Targets:
    tokenizer = load_tokenizer(data.tokenizer)
    return load_targets(objective, tokenizer.piece_kinds(), mask_id=tokenizer.mask_id)


def _complete(sent: Mapping[str, Tensor], fields: Sequence[str], *, numbers: NDArray[np.int64]) -> Batch:
    """The batch of these fields: those made with the targets, and what follows from them and the sample numbers."""
    ids = sent["input_ids"]
    derived: dict[str, Callable[[], Tensor]] = {
        "attention_mask": lambda: (ids != PAD_ID).long(),
        SAMPLE_NUMBERS: lambda: torch.from_numpy(numbers),
        "document_starts": lambda: torch.from_numpy(document_starts(ids.numpy())),
    }
    return {name: sent[name] if name in sent else derived[name]() for name in fields}


def _close_if_alive(reference: "weakref.ref[StepIterator]") -> None:
    iterator = reference()
    if iterator is not None:
        iterator.close()
