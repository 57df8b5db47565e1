"""Sequences of whole documents: every token once, in order, documents apart."""

import itertools
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megadeberta.config.deepspeed_block import BatchAlgebra
from megadeberta.config.objective import ObjectiveConfig
from megadeberta.data.check import check_data
from megadeberta.data.indexed import TokenShard
from megadeberta.data.loader import batch_fields, training_batches, validation_batches
from megadeberta.data.packing import PackedReader, document_starts
from megadeberta.data.packing_starts import SequenceStarts
from megadeberta.data.shard_writer import ShardWriter
from tests.unit.data.small_data import make_data

CLS, SEP, PAD = 1, 2, 0


def _shard(prefix: Path, lengths: list[int]) -> np.ndarray:
    """Documents of these lengths with tokens 4, 5, 6, ..."""
    tokens = np.arange(4, 4 + sum(lengths)) % 60_000
    with ShardWriter(prefix, dtype=np.dtype(np.uint16)) as writer:
        start = 0
        for length in lengths:
            writer.add_document(tokens[start : start + length])
            start += length
        writer.commit(tokenizer_sha256="0" * 64, tokenizer_pieces=65_000)
    return tokens


def _plan(ends: np.ndarray, length: int, block: int) -> list[int]:
    """Where sequences start, the documents given in blocks."""
    planned, starts = SequenceStarts(length), []
    for first in range(0, len(ends), block):
        for some in planned.add(ends[first : first + block]):
            starts += some.tolist()
    return starts + planned.finish().tolist()


def test_documents_have_marks_of_their_own_and_a_long_one_goes_on_in_the_next_sequence(tmp_path: Path) -> None:
    _shard(tmp_path / "s", [3, 2, 6])
    rows = PackedReader(tmp_path / "s", 12).read(np.arange(2))
    assert rows.tolist() == [[1, 4, 5, 6, 2, 1, 7, 8, 2, 1, 9, 2], [1, 10, 11, 12, 13, 14, 2, 0, 0, 0, 0, 0]]
    assert document_starts(rows).tolist()[0] == [0] * 5 + [5] * 4 + [9] * 3


def test_room_for_marks_alone_stays_padding(tmp_path: Path) -> None:
    _shard(tmp_path / "s", [4, 5])
    rows = PackedReader(tmp_path / "s", 8).read(np.arange(2))
    assert rows.tolist() == [[1, 4, 5, 6, 7, 2, 0, 0], [1, 8, 9, 10, 11, 12, 2, 0]]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(1, 40), min_size=1, max_size=30), st.integers(8, 24))
def test_every_token_is_in_exactly_one_sequence_and_only_the_end_is_wasted(lengths: list[int], length: int) -> None:
    ends = np.cumsum(lengths)
    starts = _plan(ends, length, len(ends))
    assert starts[0] == 0 and starts[-1] == ends[-1]
    for start, stop in itertools.pairwise(starts):
        borders = np.count_nonzero((ends > start) & (ends < stop))
        used = stop - start + 2 * (borders + 1)
        assert stop - start > 0 and used <= length
        # Another token would need one place in the same document, three in the next.
        needed = 3 if stop in ends else 1
        assert stop == ends[-1] or used + needed > length


def _plan_one_by_one(ends: np.ndarray, length: int) -> list[int]:
    """Where sequences start, document after document."""
    starts, used, position = [0], 0, 0
    for end in ends.tolist():
        while position < end:
            taken = min(end - position, length - used - 2)
            if taken <= 0:  # no room for marks and a token
                starts.append(position)
                used = 0
                continue
            position, used = position + taken, used + taken + 2
            if used == length and position < ends[-1]:
                starts.append(position)
                used = 0
    return [*starts, position]


@settings(max_examples=300, deadline=None)
@given(st.lists(st.integers(1, 90), min_size=1, max_size=60), st.integers(8, 24), st.integers(1, 60), st.integers(1, 9))
def test_planning_in_blocks_is_planning_document_by_document(
    lengths: list[int], length: int, block: int, at_once: int
) -> None:
    ends = np.cumsum(lengths, dtype=np.int64)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("megadeberta.data.packing_starts._STARTS_AT_ONCE", at_once)
        assert _plan(ends, length, block) == _plan_one_by_one(ends, length)


@pytest.mark.parametrize("tokens", [1, 3, 6, 7, 8, 9, 10])
def test_documents_of_one_length_are_planned_document_by_document(tokens: int) -> None:
    ends = np.arange(tokens, 300 * tokens, tokens)
    assert _plan(ends, 10, 64) == _plan_one_by_one(ends, 10)


def test_no_documents_are_no_sequences() -> None:
    assert _plan(np.empty(0, np.int64), 10, 64) == [0]


def test_empty_documents_leave_no_marks(tmp_path: Path) -> None:
    _shard(tmp_path / "s", [0, 3, 0, 0, 2, 0])
    assert PackedReader(tmp_path / "s", 12).read(np.arange(1)).tolist() == [[1, 4, 5, 6, 2, 1, 7, 8, 2, 0, 0, 0]]


@pytest.mark.parametrize("objective", ["mlm", "rtd", "ar"])
def test_batches_of_packed_documents_say_where_each_one_starts(tmp_path: Path, objective: str) -> None:
    data = make_data(tmp_path, train_tokens=3950, valid_tokens=250, sequence_length=64)
    packed = data.model_copy(update={"packing": "documents"})
    facts = check_data(packed, 512)
    assert facts.train_chunks > check_data(data, 512).train_chunks  # marks take room
    algebra = BatchAlgebra(4, 2, 2, 1)
    config = ObjectiveConfig(name=objective)
    with training_batches(packed, config, seed=3, algebra=algebra, data_rank=0, start_step=0, total_steps=2) as steps:
        batches = [batch for step in steps for batch in step.micro_batches]
    batches += validation_batches(packed, config, eval_sequences=4, algebra=algebra, data_rank=0)
    for batch in batches:
        assert tuple(batch) == batch_fields(packed, config)
        ids, starts = batch["input_ids"], batch["document_starts"]
        assert (ids.gather(1, starts) == CLS).all()
        assert ((ids == CLS).cumsum(1) == (starts.diff(dim=1, prepend=starts[:, :1] - 1) > 0).cumsum(1)).all()
    with TokenShard.open(data.valid) as shard:
        first = shard.document(0)[:60]
    if objective == "ar":
        assert batches[-1]["input_ids"].shape[1] == 64
        assert batches[4]["input_ids"][0, 1:61].tolist() == first.tolist()


def test_sample_numbers_do_not_depend_on_the_layout(tmp_path: Path) -> None:
    data = make_data(tmp_path, train_tokens=950, valid_tokens=250, sequence_length=64)
    config = ObjectiveConfig(name="rtd")

    def keys(algebra: BatchAlgebra) -> dict[int, int]:
        found = {}
        for rank in range(algebra.data_parallel):
            options = {"algebra": algebra, "data_rank": rank, "start_step": 1, "total_steps": 3}
            with training_batches(data, config, seed=3, **options) as steps:
                for step in steps:
                    for number, batch in enumerate(step.micro_batches):
                        first = (
                            step.step * algebra.global_batch
                            + (number * algebra.data_parallel + rank) * algebra.micro_batch
                        )
                        found.update(enumerate(batch["sample_numbers"].tolist(), start=first))
        return found

    whole = keys(BatchAlgebra(4, 4, 1, 1))
    assert whole == {sample: ((sample // 4) << 32) + sample % 4 for sample in range(4, 12)}
    assert keys(BatchAlgebra(4, 1, 2, 2)) == keys(BatchAlgebra(4, 2, 2, 1)) == whole
