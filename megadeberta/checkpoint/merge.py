"""What the ranks say they have written, as one list of files and one index: rank 0's work in a commit."""

import hashlib
import json
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, Self

from megadeberta.checkpoint.durable import Digest, open_to_read, write_new_file
from megadeberta.checkpoint.folder import INDEX_NAME
from megadeberta.checkpoint.manifest import SAFE_NAME, FileRecord, PartRecord
from megadeberta.checkpoint.rank_share import WrittenShare
from megadeberta.checkpoint.shares import Place
from megadeberta.errors import StorageError


class Report(NamedTuple):
    """What a rank says after it has written; ``share`` None: it could not, ``problem`` says why."""

    share: WrittenShare | None
    files: Mapping[str, Digest]
    problem: str

    def to_json(self) -> str:
        """For the other ranks."""
        return json.dumps(self)

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Of another rank."""
        share, files, problem = json.loads(text)
        written = None if share is None else WrittenShare(*(Digest(*digest) for digest in share))
        return cls(written, {name: Digest(*digest) for name, digest in files.items()}, problem)


def merge_reports(folder: Path, places: Sequence[Place], reports: Sequence[Report]) -> dict[str, FileRecord]:
    """The record of every file of the folder, and the index, which is written here. Rank 0 alone.

    Raises:
        StorageError: a rank could not write, or the folder has not what the ranks wrote, or more.
        OSError: the disk refused.
    """
    shares = []
    for rank, report in enumerate(reports):
        if report.share is None:
            raise StorageError(f"rank {rank}: {report.problem}")
        shares.append(report.share)
    files = _shared_files(places, shares)
    for rank, report in enumerate(reports):
        for name, digest in report.files.items():
            if name in files or not re.fullmatch(SAFE_NAME, name):
                raise StorageError(f"rank {rank} wrote {name!r}, which another rank wrote too or is no plain name")
            files[name] = FileRecord.of_one(digest, rank)
    records = _read_records(folder, places, [share.record for share in shares])
    found = {entry.name: entry.stat(follow_symlinks=False).st_size for entry in os.scandir(folder)}
    for name, record in files.items():
        if found.pop(name, None) != record.bytes:
            raise StorageError(
                f"{record.writers} wrote {name}, rank 0 does not find its {record.bytes} bytes in {folder}; "
                "the output folder must be one that all nodes share"
            )
    if found:
        raise StorageError(f"{folder / min(found)}: was put into the unfinished checkpoint by something else")
    lines = [
        b'{"file": "%s", "content": %s}' % (place.file.encode(), record)
        for place, record in zip(places, records, strict=True)
    ]
    files[INDEX_NAME] = FileRecord.of_one(write_new_file(folder / INDEX_NAME, b"[" + b",\n".join(lines) + b"]\n"), 0)
    return files


def _shared_files(places: Sequence[Place], shares: Sequence[WrittenShare]) -> dict[str, FileRecord]:
    """A file has the headers of its ranks, and then their data, as ``plan_shares`` lays them out."""
    headers: dict[str, list[PartRecord]] = {}
    data: dict[str, list[PartRecord]] = {}
    for rank, (place, share) in enumerate(zip(places, shares, strict=True)):
        for parts, digest in ((headers, share.header), (data, share.data)):
            part = PartRecord(bytes=digest.bytes, sha256=digest.sha256, rank=rank)
            parts.setdefault(place.file, []).append(part)
    return {name: FileRecord(parts=(*parts, *data[name])) for name, parts in headers.items()}


def _read_records(folder: Path, places: Sequence[Place], records: Sequence[Digest]) -> list[bytes]:
    """The record of every rank, read from the file of its machine, each of which is opened once.

    Opening also makes a network file system ask anew for the size of what rank 0 created and others wrote.
    """
    ranks_of: dict[str, list[int]] = {}
    for rank, place in enumerate(places):
        ranks_of.setdefault(place.file, []).append(rank)
    found = [b""] * len(places)
    for name, ranks in ranks_of.items():
        with open_to_read(folder / name) as file:
            for rank in ranks:
                text = os.pread(file.fileno(), records[rank].bytes, places[rank].data.start)
                if hashlib.sha256(text).hexdigest() != records[rank].sha256:
                    raise StorageError(
                        f"rank 0 reads another record of rank {rank} in {folder / name} than was written there; "
                        "the disk or its cache is bad"
                    )
                found[rank] = text.rstrip()
    return found
