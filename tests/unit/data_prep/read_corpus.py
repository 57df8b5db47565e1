"""Reads every file of a folder as prep does, each by itself, and prints what became of it and the memory it took.

python read_corpus.py FOLDER [FORMAT or MAX_LINE_BYTES]
"""

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

from megadeberta.data_prep.bad_lines import Tally
from megadeberta.data_prep.blocks import BlockCutter, choose_block_bytes, choose_whole_bytes
from megadeberta.data_prep.documents import read_documents
from megadeberta.data_prep.options import DocumentPer, ReadOptions
from megadeberta.data_prep.sources import find_sources
from megadeberta.errors import MegadebertaError


def read(path: Path, options: ReadOptions, spool: Path) -> dict[str, Any]:
    """Counts of one file, or the message with which it is refused."""
    whole = Tally()
    try:
        sources = find_sources([path], split="train", options=options, outside=spool).sources
        sizes = {"block_bytes": choose_block_bytes(sources), "whole_bytes": choose_whole_bytes(sources)}
        cutter = BlockCutter(sources, options, **sizes, spool=spool)
        for block in cutter:
            for section in block.sections:
                tally = Tally()
                for _ in read_documents(section, options, source=sources[section.source], tally=tally):
                    pass
                whole.add(tally)
        for damage in cutter.damage.values():
            whole.add(damage)
    except MegadebertaError as error:
        return {"error": str(error)}
    return {"documents": whole.documents, "counts": whole.counts}


def peak_bytes() -> int:
    """The largest memory of this process; not ru_maxrss, which starts at that of the process that forked this one."""
    status = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmHWM"))


def main(folder: Path, option: str = "auto") -> None:
    """Print JSON: relative path -> what was found."""
    limits = {"max_line_bytes": int(option)} if option.isdecimal() else {"input_format": option}
    options = ReadOptions(document_per=DocumentPer.LINE, **limits)  # type: ignore[arg-type]
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    with tempfile.TemporaryDirectory() as spool:
        found: dict[str, Any] = {str(path.relative_to(folder)): read(path, options, Path(spool)) for path in files}
    print(json.dumps({**found, "peak_bytes": peak_bytes()}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:])
