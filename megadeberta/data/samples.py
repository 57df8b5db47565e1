"""Global samples as sequences: the token files of a run, read in the order that the seed and the blend give."""

# N samples · L length

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from megadeberta.config.blend import BlendSegment
from megadeberta.config.data import DataConfig
from megadeberta.data.blend import Blend
from megadeberta.data.counter_random import Words, stream_key
from megadeberta.data.packing import PackedReader
from megadeberta.data.sample_order import SampleOrder
from megadeberta.data.sequences import ChunkReader, open_reader
from megadeberta.remote.path import RemotePath


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
        reader = self._opened()
        epochs, chunks = SampleOrder(self._seed, reader.num_chunks).locate(ordinals)
        return reader.read(chunks), stream_key(self._seed, "mask", epochs, chunks)

    def read_ahead(self, ordinals: NDArray[np.int64]) -> None:
        """Say which samples will be read soon, so that those of a remote file are fetched meanwhile.

        Raises:
            DataError: the file is missing or damaged.
        """
        reader = self._opened()
        if reader.is_remote:
            reader.read_ahead(SampleOrder(self._seed, reader.num_chunks).locate(ordinals)[1])

    def _opened(self) -> ChunkReader | PackedReader:
        if self._reader is None:
            self._reader = open_reader(self._prefix, self._data)
        return self._reader


class TrainingSamples:
    """The samples of a run: of its one token file, or of a blend."""

    def __init__(self, data: DataConfig, seed: int, segments: Sequence[BlendSegment]) -> None:
        """``segments``: of a blend; empty where ``data.train`` is one prefix. Opens nothing yet."""
        self._blend = Blend(segments) if segments else None
        self._sources = {name: SourceSamples(name, data, seed) for name in data.train_prefixes}
        self._length = data.sequence_length
        self._has_remote = any(isinstance(prefix, RemotePath) for prefix in data.train_prefixes.values())

    def read(self, samples: NDArray[np.int64]) -> tuple[NDArray[np.int64], Words]:
        """Sequences ``[N, L]`` of global samples ``[N]``, and the key of each one's masks, ``[N]``.

        Raises:
            DataError: a token file is missing or damaged.
        """
        if self._blend is None:
            return self._sources[""].read(samples)
        sequences, keys = np.empty((len(samples), self._length), np.int64), np.empty(len(samples), np.uint64)
        for source, places, ordinals in self._by_source(self._blend, samples):
            sequences[places], keys[places] = source.read(ordinals)
        return sequences, keys

    def read_ahead(self, samples: NDArray[np.int64]) -> None:
        """Say which samples ``[N]`` will be read soon. Costs nothing where all token files are of this machine.

        Raises:
            DataError: a token file is missing or damaged.
        """
        if not self._has_remote:
            return
        if self._blend is None:
            self._sources[""].read_ahead(samples)
            return
        for source, _, ordinals in self._by_source(self._blend, samples):
            source.read_ahead(ordinals)

    def _by_source(
        self, blend: Blend, samples: NDArray[np.int64]
    ) -> Iterator[tuple[SourceSamples, NDArray[np.int64], NDArray[np.int64]]]:
        """Of every source that has some, their places among ``samples`` and their numbers within the source."""
        sources, ordinals = blend.locate(samples)
        for number in np.unique(sources).tolist():
            places = np.flatnonzero(sources == number)
            yield self._sources[blend.names[number]], places, ordinals[places]
