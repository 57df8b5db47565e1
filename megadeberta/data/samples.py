"""Global samples as sequences: the token files of a run, read in the order that the seed and the blend give."""

# N samples · L length

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from megadeberta.config.blend import BlendSegment
from megadeberta.config.data import DataConfig
from megadeberta.data.blend import Blend
from megadeberta.data.counter_random import Words, stream_key
from megadeberta.data.packing import PackedReader
from megadeberta.data.sample_order import SampleOrder
from megadeberta.data.sequences import ChunkReader, open_reader


class SourceSamples:
    """The samples of one token file, in an order of its own. Opens the file at its first read."""

    def __init__(self, name: str, data: DataConfig, seed: int) -> None:
        self._prefix = data.train_prefixes[name]
        self._data = data
        # Sources of equal size must not have equal orders and masks.
        self._seed = int(stream_key(seed, "source", name)) if name else seed
        self._reader: ChunkReader | PackedReader | None = None

    def read(self, ordinals: NDArray[np.int64]) -> tuple[NDArray[np.int64], Words]:
        """Sequences ``[N, L]``, and the key of each one's masks, ``[N]``.

        Args:
            ordinals: ``[N]``, counted over all epochs of this file.

        Raises:
            DataError: the file is missing or damaged.
        """
        if self._reader is None:
            self._reader = open_reader(self._prefix, self._data)
        epochs, chunks = SampleOrder(self._seed, self._reader.num_chunks).locate(ordinals)
        return self._reader.read(chunks), stream_key(self._seed, "mask", epochs, chunks)


class TrainingSamples:
    """The samples of a run: of its one token file, or of a blend."""

    def __init__(self, data: DataConfig, seed: int, segments: Sequence[BlendSegment]) -> None:
        """``segments``: of a blend; empty where ``data.train`` is one prefix. Opens nothing yet."""
        self._blend = Blend(segments) if segments else None
        self._sources = {name: SourceSamples(name, data, seed) for name in data.train_prefixes}
        self._length = data.sequence_length

    def read(self, samples: NDArray[np.int64]) -> tuple[NDArray[np.int64], Words]:
        """Sequences ``[N, L]`` of global samples ``[N]``, and the key of each one's masks, ``[N]``.

        Raises:
            DataError: a token file is missing or damaged.
        """
        if self._blend is None:
            return self._sources[""].read(samples)
        sources, ordinals = self._blend.locate(samples)
        sequences, keys = np.empty((len(samples), self._length), np.int64), np.empty(len(samples), np.uint64)
        for number in np.unique(sources).tolist():
            places = np.flatnonzero(sources == number)
            sequences[places], keys[places] = self._sources[self._blend.names[number]].read(ordinals[places])
        return sequences, keys
