"""The order of a blend: shares over every window, every sequence once per epoch, the same under every layout."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from megadeberta.config.batches import BatchSizes
from megadeberta.config.blend import BlendSegment, BlendSource
from megadeberta.config.data import DataConfig
from megadeberta.config.deepspeed_block import BatchAlgebra
from megadeberta.config.objective import ObjectiveConfig
from megadeberta.data.blend import Blend, whole_weights
from megadeberta.data.blend_history import Stretch, continue_blend
from megadeberta.data.check import check_data
from megadeberta.data.loader import training_batches, validation_batches
from megadeberta.data.samples import TrainingSamples
from megadeberta.data.tokenizer import SentencePieceTokenizer
from tests.unit.data.small_data import make_data, write_shard

BATCH = 8
LANGUAGES = 100


def _segment(weights: dict[str, float], *, first_sample: int = 0) -> BlendSegment:
    total = sum(weights.values())
    whole = whole_weights({name: weight / total for name, weight in weights.items()})
    sources = {name: BlendSource(weight=weight, asked="", content=name) for name, weight in whole.items()}
    return BlendSegment(first_sample=first_sample, sources=sources)


def _languages() -> dict[str, float]:
    """Sizes over five orders of magnitude, flattened as for mDeBERTa's corpus."""
    return {f"l{n:02d}": (10.0 ** (5 * n / LANGUAGES)) ** 0.3 for n in range(LANGUAGES)}


@pytest.mark.parametrize(
    "weights",
    [
        {"a": 1.0, "b": 1.0},
        {"a": 0.7, "b": 0.2, "c": 0.1},
        {"a": 0.999, "b": 0.0007, "c": 0.0003},
        {f"s{n:02d}": 2.0**-n for n in range(20)},
        {f"s{n}": 1.618**-n for n in range(12)},
        _languages(),
    ],
    ids=["equal", "three", "tiny", "halves", "fibonacci", "languages"],
)
@pytest.mark.parametrize("start", [0, 10**12])
def test_shares_of_any_window_of_ten_thousand_are_within_a_thousandth(weights: dict[str, float], start: int) -> None:
    blend = Blend([_segment(weights)])
    sources, _ = blend.locate(np.arange(start, start + 60_000))
    total = sum(weights.values())
    for number, name in enumerate(blend.names):
        counts = np.concatenate([[0], np.cumsum(sources == number)])
        windows = counts[10_000:] - counts[:-10_000]
        assert np.abs(windows - 10_000 * weights[name] / total).max() < 5  # of the 10 allowed


def test_every_source_counts_its_samples_without_a_gap() -> None:
    blend = Blend([_segment({"a": 5, "b": 3, "c": 0.01}), _segment({"b": 1, "d": 2}, first_sample=1001)])
    sources, ordinals = blend.locate(np.arange(5000))
    for number, name in enumerate(blend.names):
        own = ordinals[sources == number]
        assert own.tolist() == list(range(len(own)))
        assert blend.taken(5000)[name] == len(own)
    assert blend.taken(1001)["d"] == 0 and blend.taken(1001)["a"] == blend.taken(5000)["a"]


def test_a_sample_does_not_depend_on_what_is_asked_with_it() -> None:
    blend = Blend([_segment(_languages()), _segment({"l00": 1, "l99": 2}, first_sample=170)])
    together = np.stack(blend.locate(np.arange(300)))
    alone = [np.stack(blend.locate(np.array([sample])))[:, 0] for sample in range(300)]
    assert np.array_equal(together, np.stack(alone, axis=1))


def test_the_order_of_a_blend_never_changes() -> None:
    sources, ordinals = Blend([_segment({"a": 5, "b": 2, "c": 1})]).locate(np.arange(16))
    assert "".join("abc"[number] for number in sources) == "aabaababaacaabab"
    assert ordinals.tolist() == [0, 1, 0, 2, 3, 1, 4, 2, 5, 6, 0, 7, 8, 3, 9, 4]


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> DataConfig:
    """One token file of 61 sequences of 30 tokens; two more beside it."""
    data = make_data(tmp_path_factory.mktemp("blend"), train_tokens=1811, valid_tokens=95, sequence_length=32)
    tokenizer = SentencePieceTokenizer.load(data.tokenizer)
    for number, tokens in enumerate((900, 331), start=3):
        write_shard(data.tokenizer.parent / f"train{number}", tokenizer, num_tokens=tokens, seed=number)
    return data


def _blend_of(plain: DataConfig, packing: str = "none", **settings: dict[str, float]) -> DataConfig:
    folder = plain.tokenizer.parent
    prefixes = {"en": folder / "train", "de": folder / "train3", "fr": folder / "train4"}
    train = {name: {"prefix": prefixes[name], **values} for name, values in settings.items()}
    return DataConfig.model_validate({**plain.model_dump(), "train": train, "packing": packing})


def _segments(data: DataConfig) -> tuple[BlendSegment, ...]:
    facts = check_data(data, 512).train
    return continue_blend(data, facts, saved=(), stretch=Stretch(0, 80, BatchSizes((), BATCH)))


Rows = dict[int, bytes]


def _rows(
    data: DataConfig,
    segments: Sequence[BlendSegment],
    *,
    ranks: int,
    micro_batch: int,
    workers: int = 0,
    objective: str = "mlm",
    start: int = 0,
    steps: int = 6,
) -> Rows:
    """Global sample -> its inputs and targets, from all ranks."""
    algebra = BatchAlgebra(BATCH, micro_batch, BATCH // (ranks * micro_batch), ranks)
    found: Rows = {}
    for rank in range(ranks):
        with training_batches(
            data.model_copy(update={"loader_workers": workers}),
            ObjectiveConfig(name=objective),
            seed=7,
            algebra=algebra,
            data_rank=rank,
            start_step=start,
            total_steps=steps,
            segments=segments,
        ) as items:
            for item in items:
                for number, batch in enumerate(item.micro_batches):
                    first = item.step * BATCH + (number * ranks + rank) * micro_batch
                    for row in range(micro_batch):
                        fields = [tensor[row].numpy() for tensor in batch.values()]
                        # Slots beyond a sequence's own targets depend on its neighbours.
                        found[first + row] = b"".join(
                            np.trim_zeros(field.reshape(-1), "b").tobytes() for field in fields
                        )
    return found


@pytest.mark.parametrize("objective", ["mlm", "rtd", "ar"])
@pytest.mark.parametrize("packing", ["none", "documents"])
def test_every_layout_gives_the_same_samples_and_masks(plain: DataConfig, packing: str, objective: str) -> None:
    data = _blend_of(plain, packing, en={"weight": 3}, de={"weight": 1})
    segments = _segments(data)
    whole = _rows(data, segments, ranks=1, micro_batch=8, objective=objective)
    assert len(whole) == 48 == len(set(whole.values()))
    for ranks, micro_batch in ((1, 2), (2, 4), (2, 1), (8, 1)):
        assert _rows(data, segments, ranks=ranks, micro_batch=micro_batch, objective=objective) == whole
    late = _rows(data, segments, ranks=2, micro_batch=2, objective=objective, start=4)
    assert late == {sample: row for sample, row in whole.items() if sample >= 32}


@pytest.mark.parametrize("workers", [1, 2])
def test_workers_change_nothing(plain: DataConfig, workers: int) -> None:
    data = _blend_of(plain, en={}, de={}, fr={})
    segments = _segments(data)
    found = _rows(data, segments, ranks=2, micro_batch=2, workers=workers)
    assert found == _rows(data, segments, ranks=1, micro_batch=8)


def test_a_longer_run_starts_with_the_shorter_one(plain: DataConfig) -> None:
    data = _blend_of(plain, en={}, de={}, fr={})
    facts = check_data(data, 512).train
    stretches = [Stretch(0, stop, BatchSizes((), BATCH)) for stop in (48, 48_000)]
    short, long = (continue_blend(data, facts, saved=(), stretch=stretch) for stretch in stretches)
    assert short == long


@pytest.mark.parametrize("packing", ["none", "documents"])
def test_every_sequence_of_a_source_comes_once_per_epoch_of_that_source(plain: DataConfig, packing: str) -> None:
    data = _blend_of(plain, packing, en={"weight": 0.5}, de={"weight": 0.3}, fr={"weight": 0.2})
    segments, facts = _segments(data), check_data(data, 512).train
    samples = np.arange(400)
    sequences, keys = TrainingSamples(data, 7, segments).read(samples)
    blend = Blend(segments)
    sources, ordinals = blend.locate(samples)
    assert len(np.unique(keys)) == len(keys)
    for number, name in enumerate(blend.names):
        size = facts[name].sequences
        rows = sequences[sources == number][np.argsort(ordinals[sources == number])]
        epochs = [sorted(map(bytes, rows[start : start + size])) for start in range(0, len(rows) - size + 1, size)]
        assert len(epochs) > 1 and all(epoch == epochs[0] and len(set(epoch)) == size for epoch in epochs)
        assert rows[:size].tolist() != rows[size : 2 * size].tolist()


def test_one_prefix_is_read_in_the_order_it_always_had(plain: DataConfig) -> None:
    sequences, keys = TrainingSamples(plain, 7, ()).read(np.arange(4))
    assert sequences[:, 1].tolist() == [288, 147, 186, 150]
    assert [int(key) % 1000 for key in keys] == [741, 985, 37, 814]


def test_validation_files_are_read_by_name(plain: DataConfig) -> None:
    folder: Path = plain.tokenizer.parent
    data = plain.model_copy(update={"valid": {"b": folder / "train4", "a": folder / "valid"}})
    algebra = BatchAlgebra(4, 4, 1, 1)

    def read(of: DataConfig, source: str) -> list[list[int]]:
        options = {"eval_sequences": 6, "algebra": algebra, "data_rank": 0, "source": source}
        batches = validation_batches(of, ObjectiveConfig(), **options)
        return [row for batch in batches for row in batch["input_ids"].tolist()]

    assert list(data.valid_prefixes) == ["a", "b"]
    assert read(data, "a") == read(plain, "") and len(read(data, "a")) == 4
    assert len(read(data, "b")) == 6 and read(data, "c") == []
