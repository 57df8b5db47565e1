"""New sets from finished ones: merged, sampled, or split anew. Streams, and as whole or invisible as those of prep."""

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from megadeberta.data.files_writer import SetWriter, open_writer
from megadeberta.data.shard_manifest import ShardManifest, ShardSource
from megadeberta.data_prep.finished_sets import FinishedSet, choose, document_groups, document_keys
from megadeberta.data_prep.identity import digest
from megadeberta.data_prep.output_folder import OutputFolder
from megadeberta.data_prep.progress import Stages
from megadeberta.data_prep.report import describe_shard, write_report
from megadeberta.errors import ConfigError, DataError

_REVISION = 1
"""Raised whenever the same command would give other tokens."""
_KEYS = 1 << 64

Route = Callable[[str, np.ndarray, np.ndarray], dict[str, np.ndarray]]
"""Of a split, tokens ``[T]`` and lengths ``[D]`` of some documents: ``[D]`` booleans for each split they go to."""


@dataclass(frozen=True)
class Plan:
    """One new set."""

    command: str
    options: dict[str, Any]
    """Of the command; with the sets, what the result depends on."""
    splits: tuple[str, ...]
    """That the new set has; a split that is empty in the end is left out."""
    sources: dict[str, list[ShardSource]]
    """Files of each split, for its manifest."""


@dataclass(frozen=True)
class Target:
    """Where a new set goes, and how."""

    folder: Path
    overwrite: bool = False
    max_file_bytes: int | None = None
    """Several token files, none larger; None = one."""


def merge_sets(sets: Sequence[FinishedSet], target: Target, *, stages: Stages) -> dict[str, ShardManifest]:
    """One set with the documents of all, split by split and set by set.

    Raises:
        DataError: the tokenizers differ, one set is given twice, or the folder cannot be used.
        StorageError: the file system refused.
    """
    for other in sets[1:]:
        if other.tokenizer.sha256 != sets[0].tokenizer.sha256:
            raise DataError(
                f"{other.folder} and {sets[0].folder} have other tokenizers ({other.tokenizer.sha256[:12]}…, "
                f"{sets[0].tokenizer.sha256[:12]}…); prepare one of them again with --tokenizer "
                f"{sets[0].tokenizer.path}"
            )
    contents = [one.content for one in sets]
    for number, other in enumerate(sets):
        if (first := contents.index(other.content)) < number:
            raise DataError(f"{other.folder} holds the same documents as {sets[first].folder}; give each set once")
    splits = tuple(dict.fromkeys(split for one in sets for split in one.shards))
    sources = {split: list(dict.fromkeys(source for one in sets for source in one.sources(split))) for split in splits}
    plan = Plan("merge", {}, splits, sources)
    everything: Route = lambda split, tokens, lengths: {split: np.ones(len(lengths), dtype=bool)}  # noqa: E731
    return _write(plan, sets, target, everything, stages=stages)


def sample_set(one: FinishedSet, target: Target, *, fraction: float, stages: Stages) -> dict[str, ShardManifest]:
    """Of the training documents the ``fraction`` with the smallest hashes; the other splits whole.

    A smaller fraction is part of a larger one, and equal documents are taken or left together.

    Raises:
        ConfigError: the fraction is not between 0 and 1.
        DataError: nothing would be left, or the folder cannot be used.
        StorageError: the file system refused.
    """
    if not 0 < fraction < 1:
        raise ConfigError(f"--fraction={fraction:g}; choose more than 0 and less than 1 (0.05 is 5 %)")

    def route(split: str, tokens: np.ndarray, lengths: np.ndarray) -> dict[str, np.ndarray]:
        if split != "train":
            return {split: np.ones(len(lengths), dtype=bool)}
        return {split: document_keys(tokens, lengths, purpose="sample") < np.uint64(fraction * _KEYS)}

    sources = {split: one.sources(split) for split in one.shards}
    plan = Plan("sample", {"fraction": fraction}, tuple(one.shards), sources)
    return _write(plan, [one], target, route, stages=stages)


def split_set(
    one: FinishedSet, target: Target, *, valid: float, test: float, stages: Stages
) -> dict[str, ShardManifest]:
    """All documents of all splits, divided anew by the hash of each one's content.

    Where a document goes does not depend on the others: a set that grows keeps its validation and test documents.

    Raises:
        ConfigError: the fractions are out of range.
        DataError: a split would be empty, or the folder cannot be used.
        StorageError: the file system refused.
    """
    if not (0 < valid < 1 and 0 < test < 1 and valid + test < 1):
        raise ConfigError(f"--valid={valid:g} --test={test:g}; choose two fractions above 0 that add up to less than 1")
    borders = np.uint64(valid * _KEYS), np.uint64((valid + test) * _KEYS)

    def route(split: str, tokens: np.ndarray, lengths: np.ndarray) -> dict[str, np.ndarray]:
        keys = document_keys(tokens, lengths, purpose="split")
        is_valid, is_test = keys < borders[0], (keys >= borders[0]) & (keys < borders[1])
        return {"valid": is_valid, "test": is_test, "train": ~is_valid & ~is_test}

    everything = one.sources(*one.shards)
    plan = Plan(
        "split",
        {"valid": valid, "test": test},
        ("train", "valid", "test"),
        dict.fromkeys(("train", "valid", "test"), everything),
    )
    return _write(plan, [one], target, route, stages=stages)


def _write(
    plan: Plan, sets: Sequence[FinishedSet], target: Target, route: Route, *, stages: Stages
) -> dict[str, ShardManifest]:
    output, folder = target.folder, OutputFolder(target.folder)
    if output.resolve() in {one.folder.resolve() for one in sets}:
        raise ConfigError(f"--output={output} is a set that is read; give another folder")
    made_from = [one.content for one in sets]
    limit = {"max_file_bytes": target.max_file_bytes} if target.max_file_bytes else {}
    run_key = digest([_REVISION, plan.command, {**plan.options, **limit}, made_from])
    options = {"made_by": f"data {plan.command}", **plan.options, **limit, "from": made_from}
    with folder.lock():
        if folder.is_finished(run_key, {"split": "train", **options}, overwrite=target.overwrite):
            return folder.all_manifests()
        with folder.unfinished(), ExitStack() as stack:
            dtype = np.dtype(sets[0].shards["train"].dtype)
            writers = {
                split: open_writer(folder.prefixes[split], dtype=dtype, max_file_bytes=target.max_file_bytes)
                for split in plan.splits
            }
            for writer in writers.values():
                stack.callback(writer.discard)
            _fill(sets, writers, route, stages)
            empty = [split for split, writer in writers.items() if writer.num_documents == 0]
            if empty:
                raise DataError(
                    f"{' and '.join(empty)} would have no document; raise the fraction, or cut documents finer with "
                    "--document-per when the corpus is prepared"
                )
            return _publish(plan, sets[0], folder, writers, options, run_key)


def _fill(sets: Sequence[FinishedSet], writers: dict[str, SetWriter], route: Route, stages: Stages) -> None:
    total = sum(shard.num_tokens for one in sets for shard in one.shards.values())
    stages.begin("writing shards", total=total, unit="Mtokens")
    for one in sets:
        for split, shard in one.shards.items():
            for tokens, lengths in document_groups(shard):
                for name, chosen in route(split, tokens, lengths).items():
                    writers[name].add_documents(*choose(tokens, lengths, chosen))
                stages.advance(len(tokens))


def _publish(
    plan: Plan,
    first: FinishedSet,
    folder: OutputFolder,
    writers: dict[str, SetWriter],
    options: dict[str, Any],
    run_key: str,
) -> dict[str, ShardManifest]:
    def commit(split: str) -> ShardManifest:
        return writers[split].commit(
            tokenizer_sha256=first.tokenizer.sha256,
            tokenizer_pieces=first.tokenizer.num_pieces,
            options={"split": split, **options},
            sources=plan.sources[split],
        )

    folder.begin_replacement()
    folder.write_tokenizer(first.tokenizer)
    manifests = {split: commit(split) for split in plan.splits if split != "train"}
    described = {split: describe_shard(manifest) for split, manifest in manifests.items()}
    write_report(folder.path, {"run_key": run_key, "made_by": options["made_by"], **described})
    return {"train": commit("train"), **manifests}
