"""The last stage: everything is encoded, and becomes visible in one go. D documents, T tokens."""

from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from megadeberta.data.files_writer import SetWriter, open_writer
from megadeberta.data.index_layout import smallest_dtype
from megadeberta.data.shard_manifest import ShardManifest, ShardSource
from megadeberta.data.tokenizer import VocabularyTokenizer
from megadeberta.data_prep.duplicates import Copies
from megadeberta.data_prep.machines import JoinedParts
from megadeberta.data_prep.merge import SplitRule, check_room, choose_split, merge_parts
from megadeberta.data_prep.options import PrepOptions
from megadeberta.data_prep.output_folder import OutputFolder
from megadeberta.data_prep.parts import DOCUMENT_RECORD, PartStore
from megadeberta.data_prep.progress import Stages
from megadeberta.data_prep.report import describe_lengths, describe_shard, write_report
from megadeberta.data_prep.sources import Source
from megadeberta.errors import DataError


class Publication:
    """Merges the parts of a run into its shards and publishes them with tokenizer, report and plot."""

    def __init__(
        self,
        options: PrepOptions,
        sources: list[Source],
        store: PartStore | JoinedParts,
        numbers: dict[str, list[int]],
        *,
        copies: Copies,
        tokenizer: VocabularyTokenizer,
    ) -> None:
        """``numbers``: of the parts of each split, in order."""
        self._options = options
        self._sources = sources
        self._store = store
        self._numbers = numbers
        self.tokenizer = tokenizer
        self._dtype = smallest_dtype(tokenizer.vocab_size_needed)
        self.copies = copies

    def publish(
        self,
        output: OutputFolder,
        report: dict[str, Any],
        *,
        stages: Stages,
        plot: Callable[[Path, np.ndarray], None],
    ) -> tuple[ShardManifest, ShardManifest | None]:
        """Write both shards beside an older set, take its mark away, then publish; ``train.json`` is the last.

        Raises:
            DataError: no document has a token, or none would be left to train on.
            StorageError: the file system refused.
        """
        lengths = np.concatenate([self._of_documents("length", split) for split in self._numbers])
        num_tokens = int(lengths.sum(dtype=np.int64))
        rule = self._rule()
        check_room(output.path, num_tokens * self._dtype.itemsize + 20 * len(lengths))
        stages.begin("writing shards", total=num_tokens, unit="Mtokens")
        with ExitStack() as stack:
            train = self._writer(stack, output.train)
            valid = None
            if self._options.valid_corpora or rule.largest_valid_key >= 0:
                valid = self._writer(stack, output.valid)
            self._fill(train, valid, rule=rule, advance=stages.advance)
            output.begin_replacement()
            output.write_tokenizer(self.tokenizer)
            valid_manifest = self._commit(valid, "valid") if valid else None
            described = {
                **report,
                **self.copies.to_json(),
                "document_tokens": describe_lengths(lengths),
                "valid": describe_shard(valid_manifest) if valid_manifest else None,
            }
            write_report(output.path, described)
            plot(output.path, lengths)
            return self._commit(train, "train"), valid_manifest

    def _writer(self, stack: ExitStack, prefix: Path) -> SetWriter:
        writer = open_writer(prefix, dtype=self._dtype, max_file_bytes=self._options.max_file_bytes)
        stack.callback(writer.discard)
        return writer

    def _of_documents(self, field: str, split: str) -> np.ndarray:
        """``[D]``: the length or key of all documents of a split, in order."""
        kept = self.copies.kept
        found = [self._store.documents(number)[field][kept(number)].copy() for number in self._numbers[split]]
        return np.concatenate([np.empty(0, dtype=DOCUMENT_RECORD[field]), *found])

    def _rule(self) -> SplitRule:
        for split, is_wanted in (("train", True), ("valid", bool(self._options.valid_corpora))):
            if is_wanted and not any(map(self._has_documents, self._numbers[split])):
                raise DataError(f"no {split} document has any token; check the corpus, --text-key and --document-per")
        if self._options.valid_corpora:
            return SplitRule()
        keys, lengths = (self._of_documents(field, "train") for field in ("key", "length"))
        return choose_split(keys, lengths, self._options.split)

    def _has_documents(self, number: int) -> bool:
        return len(self._store.documents(number)[self.copies.kept(number)]) > 0

    def _fill(
        self, train: SetWriter, valid: SetWriter | None, *, rule: SplitRule, advance: Callable[[int], None]
    ) -> None:
        merge = partial(merge_parts, self._store, kept=self.copies.kept, advance=advance)
        merge(self._numbers["train"], train=train, valid=valid, rule=rule)
        if valid is not None:
            merge(self._numbers["valid"], train=valid, valid=None, rule=SplitRule())

    def _commit(self, writer: SetWriter, split: str) -> ShardManifest:
        came_from = split if self._options.valid_corpora else "train"
        return writer.commit(
            tokenizer_sha256=self.tokenizer.sha256,
            tokenizer_pieces=self.tokenizer.num_pieces,
            options={"split": split, **self._options.recorded()},
            sources=[ShardSource(name=s.name, bytes=s.size) for s in self._sources if s.split == came_from],
        )
