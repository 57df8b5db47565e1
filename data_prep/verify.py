"""Checking a finished set: every byte against the manifests, and the shards against the vocabulary."""

from collections import deque
from dataclasses import dataclass
from pathlib import Path

from megadeberta.data.indexed import TokenShard
from megadeberta.data.shard_manifest import ShardManifest
from megadeberta.data.source_list import read_sources
from megadeberta.data.tokenizer import VocabularyTokenizer, load_tokenizer
from megadeberta.data_prep.finished_sets import locate, no_copies
from megadeberta.errors import DataError


@dataclass(frozen=True)
class VerifiedSet:
    """What was checked and found right."""

    tokenizer: VocabularyTokenizer
    shards: dict[str, ShardManifest]


def verify_set(folder: Path) -> VerifiedSet:
    """Read the whole set and compare hashes, sizes, counts, largest ids and the tokenizer's hash.

    Args:
        folder: may be an address that fsspec knows; every byte is read there, copies on this machine are not trusted.

    Raises:
        DataError: the first thing that does not match.
    """
    output, prefixes = locate(folder)
    manifests = {}
    with no_copies() as cache:
        for split, prefix in prefixes.items():
            with TokenShard.open(prefix, verify_hash=True, cache=cache) as shard:
                manifests[split] = shard.manifest
                deque(read_sources(prefix, shard.manifest), maxlen=0)  # compares their hash
    tokenizer = load_tokenizer(output.tokenizer)
    for split, manifest in manifests.items():
        _check_tokenizer(manifest, tokenizer, prefixes[split])
    return VerifiedSet(tokenizer, manifests)


def _check_tokenizer(manifest: ShardManifest, tokenizer: VocabularyTokenizer, prefix: Path) -> None:
    if manifest.tokenizer_sha256 != tokenizer.sha256 or manifest.tokenizer_pieces != tokenizer.num_pieces:
        raise DataError(
            f"{tokenizer.path}: SHA-256 {tokenizer.sha256[:12]}…, {tokenizer.num_pieces} pieces; {prefix} was made "
            f"with {manifest.tokenizer_sha256[:12]}…, {manifest.tokenizer_pieces} pieces; put that file back or "
            "prepare the set again"
        )
    if manifest.max_token_id >= tokenizer.num_pieces:
        raise DataError(
            f"{prefix}: largest token id {manifest.max_token_id}, the tokenizer has {tokenizer.num_pieces} pieces; "
            "prepare the set again"
        )
