"""The loader: which samples and masks a rank gets is a function of the step alone, whatever the layout."""

import hashlib
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch

from megadeberta.config.data import DataConfig
from megadeberta.config.deepspeed_block import BatchAlgebra
from megadeberta.config.objective import ObjectiveConfig
from megadeberta.data.check import check_data
from megadeberta.data.indexed import TokenShard
from megadeberta.data.loader import StepIterator, TrainingBatches, batch_fields, training_batches, validation_batches
from megadeberta.data.shard_files import SUFFIXES
from megadeberta.data.tokenizer import SentencePieceTokenizer
from megadeberta.errors import DataError, PeerLostError
from tests.unit.data.small_data import make_data

LENGTH = 32
ROOM = LENGTH - 2
CHUNKS = 81  # not a multiple of the global batch: epochs end inside a step
TRAIN_TOKENS = (CHUNKS - 1) * ROOM + 7
GLOBAL_BATCH = 8
STEPS = 21  # the last one ends the second epoch and starts the third
SEED = 1234
OBJECTIVE = ObjectiveConfig()

Rows = dict[int, bytes]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> DataConfig:
    folder = tmp_path_factory.mktemp("data")
    return make_data(folder, train_tokens=TRAIN_TOKENS, valid_tokens=10 * ROOM + 1, sequence_length=LENGTH)


def layout(data_parallel: int, micro_batch: int) -> BatchAlgebra:
    return BatchAlgebra(GLOBAL_BATCH, micro_batch, GLOBAL_BATCH // (data_parallel * micro_batch), data_parallel)


def open_steps(
    data: DataConfig, algebra: BatchAlgebra, *, rank: int = 0, start: int = 0, total: int = STEPS, workers: int = 0
) -> StepIterator:
    return training_batches(
        data.model_copy(update={"loader_workers": workers}),
        OBJECTIVE,
        seed=SEED,
        algebra=algebra,
        data_rank=rank,
        start_step=start,
        total_steps=total,
    )


def split_rows(batch: dict[str, torch.Tensor]) -> list[bytes]:
    """Each sequence's inputs and targets, without the empty slots, whose number depends on its neighbours."""
    rows = []
    for ids, mask, positions, labels, number in zip(*(batch[name].numpy() for name in batch), strict=True):
        filled = labels != 0
        rows.append(b"".join(array.tobytes() for array in (ids, mask, positions[filled], labels[filled], number)))
    return rows


def collect(data: DataConfig, algebra: BatchAlgebra, *, start: int, workers: int) -> Rows:
    """What every rank together gets: global sample -> its row."""
    rows: Rows = {}
    for rank in range(algebra.data_parallel):
        with open_steps(data, algebra, rank=rank, start=start, workers=workers) as steps:
            for expected_step, item in enumerate(steps, start=start):
                assert item.step == expected_step
                for number, batch in enumerate(item.micro_batches):
                    first = (
                        item.step * algebra.global_batch + (number * algebra.data_parallel + rank) * algebra.micro_batch
                    )
                    rows.update(enumerate(split_rows(batch), start=first))
    return rows


@pytest.fixture(scope="module")
def reference(data: DataConfig) -> Rows:
    """One rank, one micro batch, no workers, from the start."""
    return collect(data, layout(1, GLOBAL_BATCH), start=0, workers=0)


def digest(rows: Rows) -> str:
    return hashlib.sha256(b"".join(rows[sample] for sample in sorted(rows))).hexdigest()


def original_tokens(batch: dict[str, torch.Tensor]) -> np.ndarray:
    """The sequences before masking: ``[B, L]``."""
    ids = batch["input_ids"].clone()
    rows, slots = torch.nonzero(batch["masked_labels"], as_tuple=True)
    ids[rows, batch["masked_positions"][rows, slots]] = batch["masked_labels"][rows, slots]
    return ids.numpy()


def test_every_layout_and_resume_point_gives_the_same_samples_and_masks(data: DataConfig, reference: Rows) -> None:
    assert sorted(reference) == list(range(STEPS * GLOBAL_BATCH))
    for start in range(STEPS - 1):
        wanted = digest({sample: row for sample, row in reference.items() if sample >= start * GLOBAL_BATCH})
        for data_parallel, micro_batch in ((1, 2), (2, 1), (2, 4), (4, 2)):
            rows = collect(data, layout(data_parallel, micro_batch), start=start, workers=0)
            assert digest(rows) == wanted, (start, data_parallel, micro_batch)


@pytest.mark.parametrize(("data_parallel", "micro_batch", "start"), [(1, 8, 0), (1, 2, 11), (2, 2, 5), (4, 1, 17)])
def test_worker_processes_give_the_same_samples_and_masks(
    data: DataConfig, reference: Rows, data_parallel: int, micro_batch: int, start: int
) -> None:
    rows = collect(data, layout(data_parallel, micro_batch), start=start, workers=2)
    assert rows == {sample: row for sample, row in reference.items() if sample >= start * GLOBAL_BATCH}


def test_an_epoch_has_every_chunk_once_and_drops_no_token(data: DataConfig) -> None:
    with open_steps(data, layout(1, GLOBAL_BATCH)) as steps:
        sequences = np.concatenate([original_tokens(item.micro_batches[0]) for item in steps])
    with TokenShard.open(data.train) as shard:
        tokens = shard.read_tokens(0, shard.num_tokens)
    chunks = [tokens[start : start + ROOM].tolist() for start in range(0, len(tokens), ROOM)]
    wanted = sorted([1, *chunk, 2] + [0] * (ROOM - len(chunk)) for chunk in chunks)
    assert len(wanted) == CHUNKS
    for epoch in (0, 1):
        assert sorted(sequences[epoch * CHUNKS : (epoch + 1) * CHUNKS].tolist()) == wanted
    assert not np.array_equal(sequences[:CHUNKS], sequences[CHUNKS : 2 * CHUNKS])


def test_a_chunk_is_masked_anew_in_every_epoch(data: DataConfig) -> None:
    masks: dict[bytes, list[bytes]] = {}
    with open_steps(data, layout(1, GLOBAL_BATCH), total=20) as steps:
        for item in steps:
            batch = item.micro_batches[0]
            for tokens, positions in zip(original_tokens(batch), batch["masked_positions"], strict=True):
                masks.setdefault(tokens.tobytes(), []).append(positions.numpy().tobytes())
    twice = [pair for pair in masks.values() if len(pair) == 2]
    assert len(twice) == 20 * GLOBAL_BATCH - CHUNKS
    # The last chunk has 7 tokens and one target, in the same place once in 7. The others have 5 of 30: once in 10^4.
    assert sum(first == second for first, second in twice) <= 1


def test_without_packing_nothing_asks_where_documents_are(data: DataConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("the index was read")

    monkeypatch.setattr("megadeberta.data.indexed.open_index", refuse)
    assert check_data(data, 512).train_chunks == CHUNKS
    with open_steps(data, layout(1, GLOBAL_BATCH)) as steps:
        next(steps)
    with TokenShard.open(data.train, reads_index=False) as shard, pytest.raises(AssertionError, match="was read"):
        shard.document(0)


def test_a_longer_run_starts_with_the_shorter_one(data: DataConfig) -> None:
    algebra = layout(1, GLOBAL_BATCH)
    with open_steps(data, algebra, total=3) as short, open_steps(data, algebra, total=10**9) as long:
        for step in range(3):
            assert split_rows(next(short).micro_batches[0]) == split_rows(next(long).micro_batches[0]), step
        with pytest.raises(StopIteration):
            next(short)


def test_items_carry_their_step_and_int64_tensors(data: DataConfig) -> None:
    with open_steps(data, layout(2, 2), rank=1, start=3) as steps:
        item = next(steps)
    assert item.step == 3
    assert (item.micro_batches[0]["sample_numbers"] >> 32).tolist() == [3] * len(
        item.micro_batches[0]["sample_numbers"]
    )
    assert len(item.micro_batches) == 2
    for batch in item.micro_batches:
        assert list(batch) == ["input_ids", "attention_mask", "masked_positions", "masked_labels", "sample_numbers"]
        assert tuple(batch) == batch_fields(data, OBJECTIVE)
        assert all(tensor.dtype == torch.int64 and tensor.is_contiguous() for tensor in batch.values())
        assert batch["input_ids"].shape == batch["attention_mask"].shape == (2, LENGTH)
        most = int((batch["masked_labels"] != 0).sum(1).max())
        slots = -(-most // 8) * 8
        assert batch["masked_positions"].shape == batch["masked_labels"].shape == (2, slots)


@pytest.mark.parametrize("workers", [0, 2])
def test_the_global_random_state_is_not_touched(data: DataConfig, workers: int) -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    with open_steps(data, layout(1, 4), workers=workers) as steps:
        next(steps)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_shard_shorter_than_a_sequence_is_padded(tmp_path: Path) -> None:
    tiny = make_data(tmp_path, train_tokens=5, valid_tokens=5, sequence_length=LENGTH)
    with open_steps(tiny, layout(1, GLOBAL_BATCH), total=2) as steps:
        batches = [item.micro_batches[0] for item in steps]
    tokens = np.concatenate([original_tokens(batch) for batch in batches])
    assert (tokens == tokens[0]).all()
    assert tokens[0, [0, 6]].tolist() == [1, 2]
    assert not tokens[0, 7:].any()
    assert batches[0]["attention_mask"].sum(1).tolist() == [7] * GLOBAL_BATCH


@pytest.mark.parametrize("workers", [0, 1])
def test_a_shard_cut_while_in_use_is_one_clear_error(data: DataConfig, tmp_path: Path, workers: int) -> None:
    for suffix in SUFFIXES:
        shutil.copy(f"{data.train}.{suffix}", tmp_path / f"train.{suffix}")
    cut = data.model_copy(update={"train": tmp_path / "train"})
    with open_steps(cut, layout(1, GLOBAL_BATCH), total=10**6, workers=workers) as steps:
        next(steps)
        os.truncate(tmp_path / "train.bin", 100)
        with pytest.raises(DataError, match=r"train\.bin: .*it was cut while in use; run `megadeberta prep`") as caught:
            for _ in steps:
                pass
        assert "\n" not in str(caught.value)
        assert next(steps, None) is None


def test_a_killed_worker_is_one_clear_error(data: DataConfig) -> None:
    with open_steps(data, layout(1, GLOBAL_BATCH), total=10**6, workers=1) as steps:
        next(steps)
        for worker in multiprocessing.active_children():
            worker.kill()
        with pytest.raises(PeerLostError, match=r"a process that prepares batches is lost \(.*data\.loader_workers=0"):
            for _ in steps:
                pass


_RANK = """
import os, signal, sys
from pathlib import Path
import psutil
from tests.unit.data.test_loader import layout, open_steps
from megadeberta.config.data import DataConfig

if __name__ == "__main__":
    data = DataConfig.model_validate_json(sys.argv[1])
    steps = open_steps(data, layout(1, 8), total=10**6, workers=2)
    next(steps)
    helpers = psutil.Process().children(recursive=True)
    for helper in helpers:
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
            helper.send_signal(number)
    for _ in range(100):
        item = next(steps)
    print(item.step, *(helper.pid for helper in helpers), flush=True)
    if sys.argv[2] == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.parametrize(("ending", "code"), [("kill", -signal.SIGKILL), ("leave", 0)])
def test_workers_ignore_the_signals_of_the_job_and_leave_with_the_rank(
    data: DataConfig, tmp_path: Path, ending: str, code: int
) -> None:
    script = tmp_path / "rank.py"
    script.write_text(_RANK)
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[3])}
    rank = subprocess.run(
        [sys.executable, str(script), data.model_dump_json(), ending],
        capture_output=True,
        text=True,
        env=environment,
        timeout=120,
    )
    assert rank.returncode == code, rank.stderr
    step, *helpers = map(int, rank.stdout.split())
    assert step == 100
    assert len(helpers) >= 3  # two workers and the server they are forked from
    deadline = time.monotonic() + 60
    while any(_is_running(helper) for helper in helpers) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not [helper for helper in helpers if _is_running(helper)]


def _is_running(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def validate(data: DataConfig, *, data_parallel: int, micro_batch: int, sequences: int = 512) -> list[list[bytes]]:
    """The rows each rank validates on."""
    algebra = BatchAlgebra(data_parallel * micro_batch, micro_batch, 1, data_parallel)
    shares = [
        validation_batches(data, OBJECTIVE, eval_sequences=sequences, algebra=algebra, data_rank=rank)
        for rank in range(data_parallel)
    ]
    assert all(len(batch["input_ids"]) <= micro_batch for share in shares for batch in share)
    return [[row for batch in share for row in split_rows(batch)] for share in shares]


@pytest.mark.parametrize("data_parallel", [1, 2, 3, 4, 16])
@pytest.mark.parametrize("micro_batch", [1, 3, 8])
def test_validation_shares_join_to_the_same_sequences(data: DataConfig, data_parallel: int, micro_batch: int) -> None:
    (whole,) = validate(data, data_parallel=1, micro_batch=100)
    assert len(whole) == len(set(whole)) == 11
    shares = validate(data, data_parallel=data_parallel, micro_batch=micro_batch)
    assert [row for share in shares for row in share] == whole
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_validation_takes_the_first_sequences_and_masks_them_alike_at_any_number(data: DataConfig) -> None:
    (whole,) = validate(data, data_parallel=1, micro_batch=4)
    (first,) = validate(data, data_parallel=1, micro_batch=4, sequences=5)
    assert first == whole[:5]


def test_validation_sequences_are_the_shard_in_order(data: DataConfig) -> None:
    batches = validation_batches(data, OBJECTIVE, eval_sequences=99, algebra=layout(1, 8), data_rank=0)
    tokens = np.concatenate([original_tokens(batch) for batch in batches])
    with TokenShard.open(data.valid) as shard:
        assert tokens[tokens > 3].tolist() == shard.read_tokens(0, shard.num_tokens).tolist()


def test_without_a_validation_shard_there_are_no_batches(data: DataConfig) -> None:
    without = data.model_copy(update={"valid": None})
    assert validation_batches(without, OBJECTIVE, eval_sequences=9, algebra=layout(1, 8), data_rank=0) == []


def test_batches_of_a_prepared_corpus_read_as_its_text(prepared: Path) -> None:
    data = DataConfig(
        train=prepared / "train",
        valid=prepared / "valid",
        tokenizer=prepared / "tokenizer" / "spm.model",
        sequence_length=128,
        loader_workers=1,
    )
    facts = check_data(data, 1024)
    tokenizer = SentencePieceTokenizer.load(data.tokenizer)
    with TokenShard.open(data.train) as shard:
        text = tokenizer.decode(shard.read_tokens(0, shard.num_tokens).tolist())
    assert facts.train_chunks > 100
    masked = targets = 0
    with open_steps(data, layout(2, 2), rank=1, workers=1, total=10) as steps:
        for batch in (batch for item in steps for batch in item.micro_batches):
            masked += int((batch["input_ids"] == tokenizer.mask_id).sum())
            targets += int((batch["masked_labels"] != 0).sum())
            for row in original_tokens(batch):
                assert tokenizer.decode(row.tolist()).strip() in text
    # 40 sequences of 128, whole words: 19 targets each and up to a word more.
    assert 40 * 19 <= targets < 40 * 22
    assert masked / targets == pytest.approx(0.8, abs=0.07)


class _BadBatches(TrainingBatches):
    """A worker that raises what is no error of ours at step 2, or hangs there."""

    def __init__(self, data: DataConfig, fault: str) -> None:
        options = {"seed": 1, "algebra": layout(1, GLOBAL_BATCH), "data_rank": 0}
        super().__init__(data, ObjectiveConfig(), **options)
        self._fault = fault

    def __getitem__(self, step: int) -> Any:
        if step == 2 and self._fault == "raises":
            raise ZeroDivisionError("a bug")
        if step == 2:
            time.sleep(600)
        return super().__getitem__(step)


@pytest.mark.parametrize(
    ("fault", "workers", "timeout", "error", "said"),
    [
        ("raises", 1, 300.0, ZeroDivisionError, "a bug"),
        ("raises", 2, 300.0, ZeroDivisionError, "a bug"),
        ("hangs", 2, 5.0, PeerLostError, "is lost .*timed out after 5.0 seconds"),
    ],
)
def test_a_worker_that_fails_or_hangs_ends_the_run_and_leaves_no_process(
    data: DataConfig, fault: str, workers: int, timeout: float, error: type[Exception], said: str
) -> None:
    with (
        pytest.raises(error, match=said) as caught,
        StepIterator(_BadBatches(data, fault), range(100), workers=workers, timeout=timeout) as steps,
    ):
        for _ in steps:
            pass
    assert caught.value is not None  # its traceback holds the iterator, which must not keep the workers alive
    deadline = time.monotonic() + 60
    while multiprocessing.active_children() and time.monotonic() < deadline:
        time.sleep(0.1)
    assert multiprocessing.active_children() == []
