"""Damaged and hostile shards: everything is refused at open with one line, or reads as it was written."""

import hashlib
import itertools
import json
import os
import re
import struct
from pathlib import Path

import numpy as np
import pytest

from megadeberta.data.index_blocks import document_ends
from megadeberta.data.index_layout import ShardIndex, encode_index
from megadeberta.data.indexed import TokenShard
from megadeberta.data.shard_files import SUFFIXES, shard_file
from megadeberta.data.shard_manifest import content_fingerprint, read_manifest
from megadeberta.data.shard_writer import ShardWriter
from megadeberta.errors import DataError

TOKENIZER = {"tokenizer_sha256": "0" * 64, "tokenizer_pieces": 1000}


@pytest.fixture
def prefix(tmp_path: Path) -> Path:
    rng = np.random.default_rng(11)
    lengths = rng.integers(0, 40, 30)
    with ShardWriter(tmp_path / "train", dtype=np.dtype("<u2")) as writer:
        writer.add_documents(rng.integers(4, 1000, lengths.sum()).astype(np.uint16), lengths)
        writer.commit(**TOKENIZER)
    return tmp_path / "train"


def open_whole(prefix: Path, *, verify_hash: bool = True) -> list[list[int]]:
    with TokenShard.open(prefix, verify_hash=verify_hash) as shard:
        return [shard.document(i).tolist() for i in range(shard.num_documents)]


def mutate(payload: bytes, rng: np.random.Generator) -> bytes:
    """One of: flipped bit, overwritten bytes, cut tail, added tail, removed middle, two blocks swapped, all zero."""
    kind = int(rng.integers(7))
    at, other = sorted(int(i) for i in rng.integers(0, len(payload), 2))
    if kind == 0:
        return payload[:at] + bytes([payload[at] ^ (1 << int(rng.integers(8)))]) + payload[at + 1 :]
    if kind == 1:
        noise = rng.bytes(int(rng.integers(1, 9)))
        return payload[:at] + noise + payload[at + len(noise) :]
    if kind == 2:
        return payload[:at]
    if kind == 3:
        return payload + rng.bytes(int(rng.integers(1, 40)))
    if kind == 4:
        return payload[:at] + payload[other:]
    if kind == 5:
        return payload[other:] + payload[:other]
    return bytes(len(payload))


def test_no_mutation_of_any_file_is_silent_as_training_opens_it(prefix: Path) -> None:
    rng = np.random.default_rng(300)
    written = open_whole(prefix)
    silent = []
    for trial in range(1000):
        path = shard_file(prefix, SUFFIXES[trial % 4])
        good = path.read_bytes()
        path.write_bytes(mutate(good, rng))
        try:
            # No hash of all tokens: the index is compared with its own, tokens with the sums of their blocks.
            if open_whole(prefix, verify_hash=False) != written:
                silent.append(trial)
        except DataError as error:
            assert path.with_suffix("").name in str(error) and "\n" not in str(error)
        path.write_bytes(good)
    assert silent == []


def test_an_index_that_also_fakes_its_hash_never_reads_outside_the_file(prefix: Path) -> None:
    rng = np.random.default_rng(301)
    path, manifest_path = shard_file(prefix, "idx"), shard_file(prefix, "json")
    good, manifest = path.read_bytes(), json.loads(manifest_path.read_bytes())
    tokens = np.fromfile(shard_file(prefix, "bin"), dtype="<u2").tolist()
    refused = 0
    for _ in range(300):
        bad = mutate(good, rng)
        path.write_bytes(bad)
        manifest_path.write_text(json.dumps(_resign(manifest, bad)))
        try:
            assert list(itertools.chain.from_iterable(open_whole(prefix))) == tokens
        except DataError:
            refused += 1
    # What is left are document marks moved so that they still rise: another cut of the same tokens.
    assert refused > 280


def _resign(manifest: dict, idx: bytes) -> dict:
    hashes = {name: manifest[name] for name in ("dtype", "bin_sha256", "tokenizer_sha256")}
    digest = hashlib.sha256(idx).hexdigest()
    content = content_fingerprint(idx_sha256=digest, **hashes)
    return manifest | {"idx_sha256": digest, "idx_bytes": len(idx), "content": content}


def lie(prefix: Path, idx: bytes) -> None:
    shard_file(prefix, "idx").write_bytes(idx)
    manifest = json.loads(shard_file(prefix, "json").read_bytes())
    shard_file(prefix, "json").write_text(json.dumps(_resign(manifest, idx)))


def patched(prefix: Path, offset: int, form: str, value: int) -> bytes:
    idx = bytearray(shard_file(prefix, "idx").read_bytes())
    struct.pack_into(form, idx, offset, value)
    return bytes(idx)


@pytest.mark.parametrize(
    ("offset", "form", "value", "message"),
    [
        (0, "<B", 0x4E, r"begins with b'NMIDIDX.*not an indexed dataset"),
        (9, "<Q", 2, r"version 2, only version 1"),
        (17, "<B", 7, r"dtype code 7 is not an integer type"),
        (18, "<Q", 2**62, r"header says 4611686018427387904 sequences"),
        (26, "<Q", 0, r"30 sequences and 0 document marks = 394 bytes, the file has 642"),
        (34 + 4 * 3, "<i", -5, r"length\[3\]=-5 is negative"),
        (34 + 4 * 30 + 8 * 17, "<q", 2**62, r"pointer\[17\]=4611686018427387904, the lengths before it add up to"),
        (34 + 12 * 30, "<q", 1, r"document marks run from 1 to 30, expected 0 to 30"),
        (34 + 12 * 30 + 8 * 30, "<q", 29, r"document marks run from 0 to 29, expected 0 to 30"),
        (34 + 12 * 30 + 8 * 9, "<q", 3, r"document mark\[9\]=3 is less than the one before"),
        (34 + 12 * 30 + 8 * 9, "<q", -3, r"document mark\[9\]=-3 is less than the one before"),
    ],
)
def test_a_lying_index_is_refused_with_the_value_and_the_place(
    prefix: Path, offset: int, form: str, value: int, message: str
) -> None:
    lie(prefix, patched(prefix, offset, form, value))
    with pytest.raises(DataError, match=rf"train\.idx: .*{message}"):
        TokenShard.open(prefix)
    with pytest.raises(DataError, match=rf"train\.idx: .*{message}"):
        ends_in_blocks(prefix, 7)


def ends_in_blocks(prefix: Path, size: int) -> list[int]:
    """Where documents end, from an index that is read a few numbers at a time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("megadeberta.data.index_blocks.NUMBERS_AT_ONCE", size)
        blocks = list(document_ends(shard_file(prefix, "idx"), read_manifest(shard_file(prefix, "json"))))
    return np.concatenate([np.empty(0, np.int64), *blocks]).tolist()


def test_an_index_read_in_blocks_is_refused_where_the_whole_one_is(prefix: Path) -> None:
    rng = np.random.default_rng(302)
    path, manifest_path = shard_file(prefix, "idx"), shard_file(prefix, "json")
    good, manifest = path.read_bytes(), manifest_path.read_text()
    outcomes = {"read": 0, "refused": 0}
    for trial in range(400):
        bad = mutate(good, rng) if trial else good
        path.write_bytes(bad)
        manifest_path.write_text(json.dumps(_resign(json.loads(manifest), bad)) if trial % 2 else manifest)
        try:
            with TokenShard.open(prefix) as shard:
                expected = [*shard.document_offsets[1:].tolist(), shard.num_tokens]
            assert ends_in_blocks(prefix, 7) == expected
            outcomes["read"] += 1
        except DataError as error:
            with pytest.raises(DataError, match=re.escape(str(error))):
                ends_in_blocks(prefix, 7)
            outcomes["refused"] += 1
    assert outcomes["read"] >= 1 and outcomes["refused"] > 390


def test_a_multimodal_index_is_refused(prefix: Path) -> None:
    lie(prefix, shard_file(prefix, "idx").read_bytes() + bytes(30))
    with pytest.raises(DataError, match=r"a mode per sequence \(multimodal\), which is not supported"):
        TokenShard.open(prefix)


def test_a_short_index_is_refused(prefix: Path) -> None:
    lie(prefix, shard_file(prefix, "idx").read_bytes()[:20])
    with pytest.raises(DataError, match="20 bytes, shorter than the 34-byte header"):
        TokenShard.open(prefix)


def test_an_index_of_another_shard_is_refused(prefix: Path) -> None:
    lie(prefix, encode_index(ShardIndex(np.dtype("u2"), np.array([3], dtype=np.int32), np.array([0, 1]))))
    with pytest.raises(DataError, match=r"documents are \('uint16', 3, 1, 1\), the manifest says"):
        TokenShard.open(prefix)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_each_missing_file_is_named(prefix: Path, suffix: str) -> None:
    shard_file(prefix, suffix).unlink()
    with pytest.raises(DataError, match=rf"train\.{suffix}: not found.*run `megadeberta prep` again"):
        TokenShard.open(prefix)


def test_a_truncated_bin_is_refused_at_open(prefix: Path) -> None:
    path = shard_file(prefix, "bin")
    size = path.stat().st_size
    os.truncate(path, size - 2)
    with pytest.raises(DataError, match=rf"train\.bin: {size - 2} bytes, the manifest says {size}"):
        TokenShard.open(prefix)


def test_a_bin_cut_under_the_reader_is_an_error_that_names_it(prefix: Path) -> None:
    with TokenShard.open(prefix) as shard:
        assert len(shard.read_tokens(0, 50)) == 50
        size = shard_file(prefix, "bin").stat().st_size
        os.truncate(shard_file(prefix, "bin"), 100)
        with pytest.raises(DataError, match=rf"train\.bin: bytes \[0, {size}\) asked, the file now ends at 100"):
            shard.read_tokens(45, 60)


def test_a_changed_byte_is_refused_when_its_block_is_read(prefix: Path) -> None:
    with TokenShard.open(prefix) as shard, shard_file(prefix, "bin").open("r+b") as file:
        assert len(shard.read_tokens(0, 10)) == 10
        file.seek(20)
        file.write(b"\x01")
        file.flush()
        with pytest.raises(DataError, match=r"train\.bin: bytes \[0, 2048\) are not those that were written"):
            shard.read_tokens(5, 15)


def test_a_changed_sum_is_refused_when_its_block_is_read_and_by_the_full_hash(prefix: Path) -> None:
    path = shard_file(prefix, "sum")
    path.write_bytes(bytes(len(path.read_bytes())))
    with TokenShard.open(prefix) as shard, pytest.raises(DataError, match="are not those that were written"):
        shard.read_tokens(0, 1)
    with pytest.raises(DataError, match=r"train\.sum: SHA-256 is not the manifest's"):
        TokenShard.open(prefix, verify_hash=True)


def without_sums(prefix: Path) -> None:
    """Turn a token file into one made before there were sums."""
    shard_file(prefix, "sum").unlink()
    path = shard_file(prefix, "json")
    fields = json.loads(path.read_bytes())
    del fields["sum_sha256"]
    path.write_text(json.dumps(fields))


def test_a_token_above_the_largest_id_is_refused_when_read_without_sums(prefix: Path) -> None:
    without_sums(prefix)
    with TokenShard.open(prefix) as shard, shard_file(prefix, "bin").open("r+b") as file:
        file.seek(20)
        file.write(b"\xff\xff")
        file.flush()
        assert len(shard.read_tokens(0, 10)) == 10
        with pytest.raises(DataError, match=r"token id 65535 in \[5, 15\), the manifest says at most 9"):
            shard.read_tokens(5, 15)


def test_a_changed_token_is_found_by_the_full_hash(prefix: Path) -> None:
    path = shard_file(prefix, "bin")
    payload = bytearray(path.read_bytes())
    payload[7] ^= 1
    path.write_bytes(payload)
    TokenShard.open(prefix).close()
    with pytest.raises(DataError, match=r"train\.bin: SHA-256 .* the tokens changed since they were written"):
        TokenShard.open(prefix, verify_hash=True)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("num_tokens", -1, r"num_tokens: Input should be greater than or equal to 0"),
        ("num_tokens", 3, r"3 tokens of uint16 are 6 bytes|tokens, sequences, documents are"),
        ("dtype", "float32", r"dtype: Input should be 'uint8'"),
        ("bin_sha256", "zz", r"bin_sha256: must match"),
        ("idx_sha256", "0" * 64, r"content .* is not the fingerprint of its other fields"),
        ("extra", 1, r"extra: Extra inputs are not permitted"),
        ("bin_bytes", 2, r"the manifest says 2"),
    ],
)
def test_a_wrong_manifest_field_is_named(prefix: Path, field: str, value: object, message: str) -> None:
    path = shard_file(prefix, "json")
    path.write_text(json.dumps(json.loads(path.read_bytes()) | {field: value}))
    with pytest.raises(DataError, match=message):
        TokenShard.open(prefix)


def test_the_largest_id_of_the_manifest_is_checked_by_the_full_pass(prefix: Path) -> None:
    path = shard_file(prefix, "json")
    path.write_text(json.dumps(json.loads(path.read_bytes()) | {"max_token_id": 5000}))
    with pytest.raises(DataError, match=r"largest token id 9\d\d, the manifest says 5000"):
        TokenShard.open(prefix, verify_hash=True)


@pytest.mark.parametrize("payload", [b"", b"{", b"[1]", b"\xff\xfe", b"[" * 100_000, b"null"])
def test_a_manifest_that_is_no_manifest_is_one_line(prefix: Path, payload: bytes) -> None:
    shard_file(prefix, "json").write_bytes(payload)
    with pytest.raises(DataError, match=r"^[^\n]*train\.json: [^\n]*run `megadeberta prep` again$"):
        TokenShard.open(prefix)


def test_a_wrong_prefix_says_which_shards_are_there(prefix: Path) -> None:
    with pytest.raises(DataError, match=r"trian: no shard here \(no trian\.json\); shards in that folder: train"):
        TokenShard.open(prefix.with_name("trian"))
    with pytest.raises(DataError, match=r"is a folder; give the prefix of a shard in it, such as .*/train"):
        TokenShard.open(prefix.parent)
    with pytest.raises(DataError, match=r"give the prefix without the ending: .*/train$"):
        TokenShard.open(shard_file(prefix, "bin"))


def test_a_file_that_cannot_be_read_is_a_data_error(prefix: Path) -> None:
    for suffix in SUFFIXES:
        path = shard_file(prefix, suffix)
        kept = path.rename(path.with_suffix(".kept"))
        path.mkdir()
        with pytest.raises(DataError, match=rf"train\.{suffix}: "):
            TokenShard.open(prefix)
        path.rmdir()
        kept.rename(path)


def test_a_random_index_never_allocates_what_its_header_claims(prefix: Path) -> None:
    header = struct.pack("<9sQBQQ", b"MMIDIDX\x00\x00", 1, 8, 2**63, 2**63)
    lie(prefix, header + bytes(600))
    with pytest.raises(DataError, match="the file has 634"):
        TokenShard.open(prefix)
