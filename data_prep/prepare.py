"""The whole preparation, top to bottom: corpus -> vocabulary -> parts -> shards."""

import hashlib
import json
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from megadeberta.config.data import TOKENIZER_FILE
from megadeberta.data.index_layout import smallest_dtype
from megadeberta.data.shard_manifest import ShardManifest
from megadeberta.data.tokenizer import SentencePieceTokenizer
from megadeberta.data_prep.bad_lines import CorpusTally, Tally
from megadeberta.data_prep.blocks import Block, BlockCutter, choose_block_bytes
from megadeberta.data_prep.document_filter import describe_test_sets
from megadeberta.data_prep.options import BadLinePolicy, PrepOptions
from megadeberta.data_prep.output_folder import OutputFolder
from megadeberta.data_prep.parts import Part, PartStore
from megadeberta.data_prep.pool import run_in_order
from megadeberta.data_prep.progress import Stages
from megadeberta.data_prep.publish import Publication
from megadeberta.data_prep.report import (
    describe_corpus,
    describe_files,
    describe_result,
    describe_vocabulary,
    report_files,
)
from megadeberta.data_prep.sources import Corpus, Source, find_sources
from megadeberta.data_prep.standard_input import standard_input
from megadeberta.data_prep.vocabulary import train_vocabulary
from megadeberta.data_prep.vocabulary_sample import (
    MEMORY_PER_BYTE,
    SECONDS_PER_MEGABYTE,
    CorpusSamples,
    Sample,
    sample_bytes,
)
from megadeberta.data_prep.work import EncodeContext, WorkContext, encode_block, sample_block
from megadeberta.errors import DataError
from megadeberta.storage import write_file

_REVISION = 3
"""Raised whenever the same input would give other tokens, so that old parts are not taken for new ones."""


@dataclass(frozen=True)
class Outcome:
    """A finished set. ``was_finished`` = the folder held it already and nothing was done."""

    train: ShardManifest
    valid: ShardManifest | None
    text_bytes: int
    seconds: float
    was_finished: bool


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
    tokenizer = SentencePieceTokenizer.load(given) if given else None
    sample_bytes(options.vocabulary)  # refused before anything is read
    output = OutputFolder(options.output)
    parts_key, run_key = _keys(options, sources, tokenizer)
    with output.lock():
        recorded = {"split": "train", **options.recorded()}
        if output.is_finished(run_key, recorded, overwrite=options.overwrite):
            return Outcome(*output.manifests(), text_bytes=0, seconds=0.0, was_finished=True)
        with Stages(console) as stages:
            for line in [*describe_files(corpus), *describe_test_sets(options.read)]:
                stages.say(line)
            run = _Run(options, corpus, output, stages=stages, parts_key=parts_key)
            return run.finish(run_key, plot=plot, began=began)


def _find_sources(options: PrepOptions) -> Corpus:
    find = partial(find_sources, options=options.read, outside=options.output)
    train, valid = find(options.corpora, split="train"), find(options.valid_corpora, split="valid")
    leaked = {source.path.resolve() for source in train.sources} & {source.path.resolve() for source in valid.sources}
    if leaked:
        raise DataError(f"{min(leaked)} is given both for training and for validation; keep them apart")
    for name, sources in (("corpus", train.sources), ("validation corpus", valid.sources)):
        if sources and not any(source.size for source in sources):
            raise DataError(f"the {name} is empty: {len(sources)} file(s), 0 bytes, first {sources[0].path}; add text")
    return Corpus(train.sources + valid.sources, train.passed_over + valid.passed_over)


def _keys(options: PrepOptions, sources: list[Source], tokenizer: SentencePieceTokenizer | None) -> tuple[str, str]:
    """What the parts depend on, and what the finished set depends on."""
    vocabulary = {**asdict(options.vocabulary), "tokenizer": tokenizer.sha256 if tokenizer else None}
    files = [[s.name, s.split, s.format_name, s.compression, s.size, s.mtime_ns] for s in sources]
    parts = [_REVISION, asdict(options.read), vocabulary, files]
    return _digest(parts)[:16], _digest([*parts, asdict(options.split), options.deduplicate])


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


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
        self._workers = min(options.workers, 1 + sum(source.size for source in sources) // self._block_bytes)

    def finish(self, run_key: str, *, plot: Callable[[Path, np.ndarray], None], began: float) -> Outcome:
        """All stages in order."""
        self._scratch.create()
        self._output.remove_drafts()
        tokenizer = SentencePieceTokenizer.load(self._timed("vocabulary", self._vocabulary))
        dtype = smallest_dtype(tokenizer.vocab_size_needed)
        store = PartStore(self._options.output, self._parts_key, dtype=dtype)
        context = EncodeContext(
            tuple(self._sources), self._options.read, self._scratch.folder / TOKENIZER_FILE, store, dtype
        )
        parts, tally = self._timed("encode", lambda: self._encode(context))
        self._check_unknown(parts)
        report = {
            "run_key": run_key,
            "files": report_files(self._corpus),
            "corpus": describe_corpus(tally),
            "num_tokens": sum(part.num_tokens for _, part in parts),
            "unknown_tokens": sum(part.num_unknown for _, part in parts),
            "vocabulary": describe_vocabulary(
                tokenizer, (part for _, part in parts), text_bytes=tally.total("text_bytes")
            ),
            "workers": self._workers,
            "seconds": self._seconds,
        }
        publication = Publication(self._options, self._sources, store, parts, tokenizer=tokenizer)
        train, valid = publication.publish(self._output, report, stages=self._stages, plot=plot)
        store.remove()
        for line in describe_result(report, publication.num_copies, self._options.deduplicate):
            self._stages.say(line)
        return Outcome(train, valid, tally.total("text_bytes"), time.monotonic() - began, was_finished=False)

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
            write_file(path, given.read_bytes())
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
        context = WorkContext(tuple(sources), self._options.read)
        self._stages.begin("reading", total=sum(source.size for source in sources))
        blocks: list[Block] = []

        def work() -> Iterator[tuple[Block, int]]:
            for block in cutter:
                blocks.append(block)
                yield block, samples.threshold(sources[block.source].corpus)

        results = run_in_order(sample_block, work(), context=context, workers=self._workers)
        for done, (block_tally, chunks) in enumerate(results):
            number = sources[blocks[done].source].corpus
            samples.add(number, chunks, text_bytes=block_tally.text_bytes)
            self._done(blocks[done], block_tally, tally)
        self._check(tally, cutter)
        return samples.joined()

    def _encode(self, context: EncodeContext) -> tuple[list[tuple[Block, Part]], CorpusTally]:
        cutter = self._cutter(self._sources)
        tally = CorpusTally([source.name for source in self._sources])
        self._stages.begin("encoding", total=sum(source.size for source in self._sources))
        blocks: list[Block] = []

        def work() -> Iterator[tuple[Block]]:
            for block in cutter:
                blocks.append(block)
                yield (block,)

        parts = []
        results = run_in_order(load_or_encode, work(), context=context, workers=self._workers)
        for done, part in enumerate(results):
            parts.append((blocks[done], part))
            self._done(blocks[done], part.tally, tally, tokens=part.num_tokens)
        self._check(tally, cutter)
        return parts, tally

    def _check_unknown(self, parts: list[tuple[Block, Part]]) -> None:
        """Refuse text that the vocabulary does not fit.

        Raises:
            DataError: with the fraction of unknown tokens, and the file with the most.
        """
        tokens, unknown = Counter[int](), Counter[int]()
        for block, part in parts:
            tokens[block.source] += part.num_tokens
            unknown[block.source] += part.num_unknown
        fraction = unknown.total() / max(1, tokens.total())
        if fraction > self._options.max_unknown_fraction:
            worst = max(unknown, key=lambda source: unknown[source])
            raise DataError(
                f"{fraction:.1%} of the tokens are [UNK], unknown to the vocabulary (allowed "
                f"{self._options.max_unknown_fraction:.1%}); most in {self._sources[worst].name} "
                f"({unknown[worst] / max(1, tokens[worst]):.1%}): is it of the vocabulary's language, and UTF-8? Train "
                "a vocabulary on this text (--vocab-size), or raise --max-unknown-fraction"
            )

    def _cutter(self, sources: list[Source]) -> BlockCutter:
        return BlockCutter(sources, self._options.read, block_bytes=self._block_bytes, spool=self._scratch.folder)

    def _done(self, block: Block, block_tally: Tally, tally: CorpusTally, *, tokens: int = 0) -> None:
        if block.is_temporary:
            block.path.unlink(missing_ok=True)
        tally.add(block.source, block_tally)
        self._stages.advance(block.consumed, tokens=tokens)
        if self._options.on_bad_line is BadLinePolicy.STOP and block_tally.rejected:
            tally.check_none_bad()

    def _check(self, tally: CorpusTally, cutter: BlockCutter) -> None:
        for source, damage in cutter.damage.items():
            tally.add(source, damage)
        if self._options.on_bad_line is BadLinePolicy.STOP:
            tally.check_none_bad()
        tally.check(max_bad_fraction=self._options.max_bad_fraction)
        if tally.total("documents") == 0:
            raise DataError(
                f"no document in {len(self._sources)} file(s): {tally.total('lines')} lines, "
                f"{tally.total('empty_documents')} of them empty after cleaning; check --text-key and --document-per"
                + "".join(f"; {line}" for line in tally.left_out().lines())
            )


def load_or_encode(context: EncodeContext, block: Block) -> Part:
    """The part a killed run left for ``block``, or a new one."""
    return context.store.load(block.number) or encode_block(context, block)
