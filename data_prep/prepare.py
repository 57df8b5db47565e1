"""The whole preparation, top to bottom: corpus -> vocabulary -> parts -> shards."""

import json
import time
from collections import deque
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from megadeberta.config.set_files import TOKENIZER_FILE
from megadeberta.data.index_layout import smallest_dtype
from megadeberta.data.tokenizer import VocabularyTokenizer, load_tokenizer
from megadeberta.data_prep.bad_lines import CorpusTally, Tally
from megadeberta.data_prep.blocks import Block, BlockCutter, choose_block_bytes, choose_whole_bytes
from megadeberta.data_prep.checks import check_corpus, check_unknown
from megadeberta.data_prep.division import WorkDivision
from megadeberta.data_prep.document_filter import describe_test_sets
from megadeberta.data_prep.duplicates import Copies, check_deduplication, find_copies
from megadeberta.data_prep.first_look import check_places
from megadeberta.data_prep.identity import agreement, make_keys
from megadeberta.data_prep.machines import MachinePart, plain_options, remove_record, write_record
from megadeberta.data_prep.options import BadLinePolicy, PrepOptions
from megadeberta.data_prep.outcome import Outcome, publish_set
from megadeberta.data_prep.output_folder import OutputFolder
from megadeberta.data_prep.parts import Counts, PartStore
from megadeberta.data_prep.pool import run_in_order
from megadeberta.data_prep.progress import Stages
from megadeberta.data_prep.publish import Publication
from megadeberta.data_prep.report import (
    describe_files,
)
from megadeberta.data_prep.sampling import sample_every
from megadeberta.data_prep.sources import Corpus, Source, check_unchanged, find_sources
from megadeberta.data_prep.standard_input import standard_input
from megadeberta.data_prep.vocabulary import train_vocabulary
from megadeberta.data_prep.vocabulary_sample import (
    MEMORY_PER_BYTE,
    SECONDS_PER_MEGABYTE,
    CorpusSamples,
    Sample,
    sample_bytes,
)
from megadeberta.data_prep.work import EncodeContext, SampleContext, SourceTallies, load_or_encode, sample_block
from megadeberta.errors import DataError
from megadeberta.storage import write_file


def prepare(options: PrepOptions, *, console: Console, plot: Callable[[Path, np.ndarray], None]) -> Outcome:
    """Make ``options.output`` a finished set, going on where a killed run of the same options was.

    Args:
        console: where progress goes.
        plot: draws the ``[D]`` document lengths into the folder.

    Raises:
        ConfigError: an option is wrong.
        DataError: the corpus, the tokenizer or the output folder cannot be used.
        StorageError: the file system refused a write; nothing looks whole that is not.
    """
    began = time.monotonic()
    with standard_input(options) as options:
        return _prepare(options, console=console, plot=plot, began=began)


def _prepare(
    options: PrepOptions, *, console: Console, plot: Callable[[Path, np.ndarray], None], began: float
) -> Outcome:
    corpus = _find_sources(options)
    sources = corpus.sources
    given = options.vocabulary.tokenizer
    tokenizer = load_tokenizer(given) if given else None
    if tokenizer is not None:
        tokenizer.check_exportable()
    sample_bytes(options.vocabulary)  # refused before anything is read
    check_deduplication(options)
    output = OutputFolder(options.output)
    parts_key, run_key = make_keys(options, sources, tokenizer)
    with output.lock():
        recorded = {"split": "train", **options.recorded()}
        if output.is_finished(run_key, recorded, overwrite=options.overwrite):
            return Outcome(*output.manifests(), text_bytes=0, seconds=0.0, was_finished=True)
        with Stages(console) as stages:
            for line in [*describe_files(corpus), *describe_test_sets(options.read)]:
                stages.say(line)
            run = _Run(options, corpus, output, stages=stages, parts_key=parts_key)
            if options.part:
                return run.finish_part(options.part, agreement(options, sources, tokenizer), began=began)
            return run.finish(run_key, plot=plot, began=began)


def _find_sources(options: PrepOptions) -> Corpus:
    find = partial(find_sources, options=options.read, outside=options.output)
    train, valid = find(options.corpora, split="train"), find(options.valid_corpora, split="valid")
    leaked = {source.path.resolve() for source in train.sources} & {source.path.resolve() for source in valid.sources}
    if leaked:
        raise DataError(f"{min(map(str, leaked))} is given both for training and for validation; keep them apart")
    for name, sources in (("corpus", train.sources), ("validation corpus", valid.sources)):
        if sources and not any(source.size for source in sources):
            raise DataError(f"the {name} is empty: {len(sources)} file(s), 0 bytes, first {sources[0].path}; add text")
    return Corpus(train.sources + valid.sources, train.passed_over + valid.passed_over)


class _Run:
    """One preparation in progress."""

    def __init__(
        self, options: PrepOptions, corpus: Corpus, output: OutputFolder, *, stages: Stages, parts_key: str
    ) -> None:
        sources = corpus.sources
        self._options = options
        self._corpus = corpus
        self._sources = sources
        self._output = output
        self._stages = stages
        self._parts_key = parts_key
        self._scratch = PartStore(options.output, parts_key, dtype=np.dtype("<u2"))
        self._seconds: dict[str, float] = {}
        # A worker takes a third of a second to start: none for a share of the corpus that is done sooner.
        self._block_bytes = choose_block_bytes(sources)
        self._sample_every = sample_every(sum(source.size for source in sources))
        self._workers = min(options.workers, 1 + sum(source.size for source in sources) // self._block_bytes)

    def finish(self, run_key: str, *, plot: Callable[[Path, np.ndarray], None], began: float) -> Outcome:
        """All stages in order."""
        tokenizer, store = self._prepare_vocabulary()
        counts, tally, _, _ = self._timed("encode", lambda: self._encode(store))
        check_corpus(tally, self._options, self._sources)
        check_unknown(counts, self._sources, self._options)
        report = {"run_key": run_key, "workers": self._workers, "seconds": self._seconds}
        copies = self._timed("copies", lambda: self._find_copies(store, counts, tokenizer))
        publication = Publication(
            self._options, self._sources, store, counts.numbers, copies=copies, tokenizer=tokenizer
        )
        outcome = publish_set(
            publication, self._output, report, self._corpus, counts, tally, stages=self._stages, plot=plot, began=began
        )
        store.remove()
        return outcome

    def _find_copies(self, store: PartStore, counts: Counts, tokenizer: VocabularyTokenizer) -> Copies:
        return find_copies(
            store, counts.numbers, self._options, tokenizer=tokenizer, folder=store.folder, stages=self._stages
        )

    def finish_part(self, part: tuple[int, int], agreed: dict[str, Any], *, began: float) -> Outcome:
        """Encode this machine's blocks, and write what merging needs to know of them."""
        remove_record(self._options.output)
        _, store = self._prepare_vocabulary()
        _, tally, damage, places = self._timed("encode", lambda: self._encode(store))
        sources = [[s.name, s.split, s.format_name, s.compression, s.size] for s in self._sources]
        record = MachinePart(
            *part,
            key=self._parts_key,
            agree=json.loads(json.dumps(agreed)),
            options=plain_options(self._options),
            sources=sources,
            passed_over=[list(vars(file).values()) for file in self._corpus.passed_over],
            blocks=places,
            damage={str(source): found.to_json() for source, found in damage.items()},
        )
        write_record(self._options.output, record)
        return Outcome(None, None, tally.total("text_bytes"), time.monotonic() - began, was_finished=False)

    def _prepare_vocabulary(self) -> tuple[VocabularyTokenizer, PartStore]:
        self._scratch.create()
        self._output.remove_drafts()
        tokenizer = load_tokenizer(self._timed("vocabulary", self._vocabulary))
        if self._options.vocabulary.tokenizer:  # to train one, all of the corpus was read
            self._timed("look", lambda: check_places(self._sources, self._options, tokenizer, self._stages.say))
        dtype = smallest_dtype(tokenizer.vocab_size_needed)
        return tokenizer, PartStore(self._options.output, self._parts_key, dtype=dtype)

    def _timed(self, name: str, stage: Callable[[], Any]) -> Any:
        began = time.monotonic()
        result = stage()
        self._seconds[name] = round(time.monotonic() - began, 2)
        return result

    def _vocabulary(self) -> Path:
        """Put the vocabulary beside the parts: the given one, the one a killed run left, or a new one."""
        path = self._scratch.folder / TOKENIZER_FILE
        given = self._options.vocabulary.tokenizer
        if given:
            write_file(path, load_tokenizer(given).content)
        elif not path.exists():
            sample = self._sample()
            megabytes = sample.num_bytes / 1e6
            self._stages.begin(f"training {self._options.vocabulary.size} pieces on {megabytes:.1f} MB", total=None)
            write_file(path, train_vocabulary(sample, self._options.vocabulary))
        return path

    def _sample(self) -> Sample:
        sources = [source for source in self._sources if source.split == "train"]
        tally = CorpusTally([source.name for source in sources])
        budget = sample_bytes(self._options.vocabulary)
        size, memory, seconds = budget / 1e6, budget / 1e9 * MEMORY_PER_BYTE, budget / 1e6 * SECONDS_PER_MEGABYTE
        self._stages.say(
            f"vocabulary: {self._options.vocabulary.size} entries from at most {size:.0f} MB of text, with at most "
            f"{memory:.1f} GB of memory and {seconds:.0f} s of a core"
        )
        samples = CorpusSamples(budget, len(self._options.corpora), self._options.vocabulary)
        cutter = self._cutter(sources)
        context = SampleContext(tuple(sources), self._options.read, self._sample_every, budget)
        self._stages.begin("reading", total=sum(source.size for source in sources))
        blocks = deque[Block]()

        def work() -> Iterator[tuple[Block, int]]:
            for block in cutter:
                blocks.append(block)
                yield block, samples.threshold(sources[block.source].corpus)

        results = run_in_order(sample_block, work(), context=context, workers=self._workers)
        for tallies, chunks in results:
            block = blocks.popleft()
            text_bytes = sum(of_source.text_bytes for _, of_source in tallies)
            samples.add(sources[block.source].corpus, chunks, text_bytes=text_bytes)
            self._done(block, tallies, tally)
        self._add_damage(tally, cutter)
        check_unchanged(sources)
        check_corpus(tally, self._options, sources)
        return samples.joined()

    def _encode(self, store: PartStore) -> tuple[Counts, CorpusTally, dict[int, Tally], list[list[int]]]:
        """What was made, what could not be used, damage found while unpacking, and the place of every block."""
        cutter = self._cutter(self._sources)
        tally = CorpusTally([source.name for source in self._sources])
        context = EncodeContext(
            tuple(self._sources),
            self._options.read,
            self._sample_every,
            self._scratch.folder / TOKENIZER_FILE,
            store,
            store.dtype,
        )
        _, machines = self._options.part or (1, 1)
        self._stages.begin("encoding", total=sum(source.size for source in self._sources) // machines)
        blocks = deque[Block]()

        def work() -> Iterator[tuple[Block]]:
            for block in cutter:
                blocks.append(block)
                yield (block,)

        counts, places = Counts(), []
        for part in run_in_order(load_or_encode, work(), context=context, workers=self._workers):
            block = blocks.popleft()
            counts.add(part, self._sources[block.source].split)
            places.append([block.source, block.sections[0].offset, block.number])
            self._done(block, [(file.source, file.tally) for file in part.files], tally, tokens=part.num_tokens)
        self._add_damage(tally, cutter)
        check_unchanged(self._sources)
        return counts, tally, cutter.damage, places

    def _cutter(self, sources: list[Source]) -> BlockCutter:
        return BlockCutter(
            sources,
            self._options.read,
            block_bytes=self._block_bytes,
            whole_bytes=choose_whole_bytes(self._sources),
            spool=self._scratch.folder,
            division=WorkDivision(*self._options.part) if self._options.part else None,
        )

    def _done(self, block: Block, tallies: SourceTallies, whole: CorpusTally, *, tokens: int = 0) -> None:
        for section in block.sections:
            if section.is_temporary and isinstance(section.path, Path):
                section.path.unlink(missing_ok=True)
        for source, tally in tallies:
            whole.add(source, tally)
            if self._options.on_bad_line is BadLinePolicy.STOP and (tally.rejected or tally.damaged_files):
                whole.check_none_bad()
        self._stages.advance(block.consumed, tokens=tokens)

    def _add_damage(self, tally: CorpusTally, cutter: BlockCutter) -> None:
        for source, damage in cutter.damage.items():
            tally.add(source, damage)
        if self._options.on_bad_line is BadLinePolicy.STOP:
            tally.check_none_bad()
