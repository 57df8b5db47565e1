"""Ready batches: which samples each rank gets at each step, read, masked and cut into micro batches.

Everything in a batch is a function of the step and the recipe. The state of the data is therefore one number, the next
step, and a run that resumes, with other ranks, micro batch or workers, goes on with the samples and masks it would have
had.
"""

# N sequences of a rank at a step · B micro batch · L length · Q slots for masked tokens

import atexit
import functools
import weakref
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from megadeberta.config.data import DataConfig
from megadeberta.config.deepspeed_block import BatchAlgebra
from megadeberta.config.objective import ObjectiveConfig
from megadeberta.data.counter_random import stream_key
from megadeberta.data.masking import MaskedBatch
from megadeberta.data.next_token import Targets, load_targets
from megadeberta.data.packing import PackedReader, document_starts
from megadeberta.data.sample_order import SampleOrder
from megadeberta.data.sequences import ChunkReader, open_reader
from megadeberta.data.tokenizer import PAD_ID, SentencePieceTokenizer
from megadeberta.data.workers import leave_with_the_rank, tells_of_a_dead_worker, worker_context
from megadeberta.errors import MegadebertaError, PeerLostError

_STEPS_AHEAD = 4  # of each worker
_VALIDATION_SEED = 0  # not the run's: losses of runs with other seeds stay comparable


@dataclass(frozen=True)
class StepBatch:
    """One rank's share of an optimizer step: ``accumulation`` micro batches.

    A micro batch holds int64 ``input_ids`` and ``attention_mask`` ``[B, L]``, ``masked_positions`` and
    ``masked_labels`` ``[B, Q]`` (label 0 = empty slot). Q differs between micro batches. Where the objective or the
    packing needs them: ``prefix_lengths`` ``[B]``, ``document_starts`` ``[B, L]``. ``sample_numbers`` ``[B]`` is
    ``step * 2**32 + place in the global batch``: dropout and sampling are functions of it.
    """

    step: int
    sample_range: tuple[int, int]  # first and last global sample of the step, over all ranks
    micro_batches: list[dict[str, Tensor]]


@dataclass(frozen=True)
class _PackedStep:
    """A step on its way from a worker: one shared-memory block, whatever the number of micro batches."""

    step: int
    slots: tuple[int, ...]  # Q of each micro batch
    words: Tensor  # int32: for each micro batch the ids, positions, labels and prefix lengths, flattened


class TrainingBatches(Dataset[_PackedStep | MegadebertaError]):
    """Item ``step`` is one rank's share of that optimizer step. Holds no open file until its first item."""

    def __init__(
        self, data: DataConfig, objective: ObjectiveConfig, *, seed: int, algebra: BatchAlgebra, data_rank: int
    ) -> None:
        self._data = data
        self._objective = objective
        self._seed = seed
        self._algebra = algebra
        self._data_rank = data_rank
        self._targets = _load_targets(data, objective)
        self._reader: ChunkReader | PackedReader | None = None

    def __getitem__(self, step: int) -> _PackedStep | MegadebertaError:
        """The packed step, or the error: raised in a worker, it would reach the user wrapped in a traceback."""
        try:
            return self._pack(step)
        except MegadebertaError as error:
            return error

    def sample_range(self, step: int) -> tuple[int, int]:
        return step * self._algebra.global_batch, (step + 1) * self._algebra.global_batch - 1

    def samples(self, step: int) -> NDArray[np.int64]:
        """This rank's global samples at a step, in the order of its micro batches: ``[N]``."""
        algebra = self._algebra
        micro_batches = np.arange(algebra.accumulation)[:, None] * algebra.data_parallel + self._data_rank
        samples = step * algebra.global_batch + micro_batches * algebra.micro_batch + np.arange(algebra.micro_batch)
        return samples.reshape(-1)

    def unpack(self, packed: _PackedStep) -> StepBatch:
        batch, length = self._algebra.micro_batch, self._data.sequence_length
        sizes = [batch * width for slots in packed.slots for width in (length, slots, slots, 1)]
        parts = [part.view(batch, -1).long() for part in packed.words.split(sizes)]
        places = self.samples(packed.step) - packed.step * self._algebra.global_batch
        numbers = (packed.step << 32) + places
        micro_batches = [
            _as_model_inputs(
                self._data,
                self._objective,
                fields=parts[4 * number : 4 * number + 4],
                numbers=numbers[number * batch : (number + 1) * batch],
            )
            for number in range(len(packed.slots))
        ]
        return StepBatch(packed.step, self.sample_range(packed.step), micro_batches)

    def _pack(self, step: int) -> _PackedStep:
        if self._reader is None:
            self._reader = open_reader(self._data.train, self._data)
        epochs, chunks = SampleOrder(self._seed, self._reader.num_chunks).locate(self.samples(step))
        made = self._targets(self._reader.read(chunks), stream_key(self._seed, "mask", epochs, chunks))
        size = self._algebra.micro_batch
        batches = [made.rows(start, start + size) for start in range(0, len(chunks), size)]
        fields = [field for batch in batches for field in _fields(batch)]
        words = np.concatenate([field.reshape(-1) for field in fields], dtype=np.int32, casting="same_kind")
        return _PackedStep(step, tuple(batch.masked_labels.shape[1] for batch in batches), torch.from_numpy(words))


class StepIterator(Iterator[StepBatch]):
    """Ready steps in order. Close it (or use ``with``) when leaving before the last step."""

    def __init__(self, batches: TrainingBatches, steps: range, *, workers: int) -> None:
        loader = DataLoader(
            batches,
            batch_size=None,
            sampler=steps,
            num_workers=workers,
            prefetch_factor=_STEPS_AHEAD if workers else None,
            multiprocessing_context=worker_context(preload=__name__) if workers else None,
            worker_init_fn=leave_with_the_rank,
            generator=torch.Generator(),  # else every start draws from the global generator, and a resumed run differs
        )
        self._dataset = batches
        self._workers = workers
        self._steps: Iterator[_PackedStep | MegadebertaError] = iter(loader)
        # The workers are deaf to SIGTERM, so somebody must tell them when the interpreter ends. The reference is weak,
        # so that dropping the iterator is enough otherwise.
        self._at_exit = functools.partial(_close_if_alive, weakref.ref(self))
        atexit.register(self._at_exit)

    def __next__(self) -> StepBatch:
        try:
            packed = next(self._steps)
        except (RuntimeError, OSError, EOFError) as error:
            if not (self._workers and tells_of_a_dead_worker(error)):
                raise
            self.close()
            raise PeerLostError(
                f"a process that prepares batches died ({error}); often memory ran out (`dmesg` names it) or /dev/shm "
                "is full. The same command resumes; data.loader_workers=0 does without these processes"
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
) -> StepIterator:
    """This rank's share of steps ``start_step`` to ``total_steps - 1``.

    Raises:
        DataError: now, or from the iterator when a shard turns out damaged.
        PeerLostError: from the iterator, when a worker process died.
    """
    batches = TrainingBatches(data, objective, seed=seed, algebra=algebra, data_rank=data_rank)
    return StepIterator(batches, range(start_step, total_steps), workers=data.loader_workers)


def validation_batches(
    data: DataConfig, objective: ObjectiveConfig, *, eval_sequences: int, algebra: BatchAlgebra, data_rank: int
) -> list[dict[str, Tensor]]:
    """This rank's share of the first ``eval_sequences`` validation chunks, masked alike at every call and in every run.

    Ranks may get different numbers of batches, or none; the last batch may be smaller than the micro batch.
    """
    if data.valid is None:
        return []
    reader = open_reader(data.valid, data)
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
    size = algebra.micro_batch
    return [
        _as_model_inputs(
            data,
            objective,
            fields=[torch.tensor(field) for field in _fields(made.rows(start, start + size))],
            numbers=chunks[start : start + size],
        )
        for start in range(0, len(chunks), size)
    ]


def steps_without_data(*, start_step: int, total_steps: int) -> Iterator[StepBatch]:
    """The same steps for a rank that is sent what it needs by other ranks."""
    return (StepBatch(step, (0, 0), []) for step in range(start_step, total_steps))


def batch_fields(data: DataConfig, objective: ObjectiveConfig) -> tuple[str, ...]:
    """Names of the tensors of every batch that these sections make."""
    fields = ["input_ids", "attention_mask", "masked_positions", "masked_labels", "sample_numbers"]
    if objective.name in ("ar", "mlm_ar"):
        fields.append("prefix_lengths")
    if data.packing == "documents":
        fields.append("document_starts")
    return tuple(fields)


def _load_targets(data: DataConfig, objective: ObjectiveConfig) -> Targets:
    tokenizer = SentencePieceTokenizer.load(data.tokenizer)
    return load_targets(objective, tokenizer.piece_kinds(), mask_id=tokenizer.mask_id)


def _fields(batch: MaskedBatch) -> tuple[NDArray[np.int64], ...]:
    """Ids, positions, labels and prefix lengths (all of the sequence where attention has no direction)."""
    prefix = batch.prefix_lengths
    if prefix is None:
        prefix = np.full(len(batch.input_ids), batch.input_ids.shape[1])
    return batch.input_ids, batch.masked_positions, batch.masked_labels, prefix


def _as_model_inputs(
    data: DataConfig, objective: ObjectiveConfig, *, fields: Sequence[Tensor], numbers: NDArray[np.int64]
) -> dict[str, Tensor]:
    input_ids, masked_positions, masked_labels, prefix_lengths = fields
    inputs = {
        "input_ids": input_ids,
        "attention_mask": (input_ids != PAD_ID).long(),
        "masked_positions": masked_positions,
        "masked_labels": masked_labels,
        "sample_numbers": torch.from_numpy(numbers),
    }
    if objective.name in ("ar", "mlm_ar"):
        inputs["prefix_lengths"] = prefix_lengths.view(-1)
    if data.packing == "documents":
        inputs["document_starts"] = torch.from_numpy(document_starts(input_ids.numpy()))
    return inputs


def _close_if_alive(reference: "weakref.ref[StepIterator]") -> None:
    iterator = reference()
    if iterator is not None:
        iterator.close()
