"""Runs prep on small blocks with a pause after each, so that a test can kill it in the middle.

python slow_prep.py CORPUS OUTPUT WORKERS PAUSE_SECONDS
"""

import sys
import time
from pathlib import Path

from rich.console import Console

import megadeberta.data_prep.prepare
from megadeberta.data_prep.blocks import Block
from megadeberta.data_prep.options import PrepOptions, VocabularyOptions
from megadeberta.data_prep.parts import Part
from megadeberta.data_prep.prepare import prepare
from megadeberta.data_prep.work import EncodeContext, load_or_encode

PAUSE = float(sys.argv[4])


def load_or_encode_slowly(context: EncodeContext, block: Block) -> Part:
    """The real work, then a pause."""
    part = load_or_encode(context, block)
    time.sleep(PAUSE)
    return part


if __name__ == "__main__":
    megadeberta.data_prep.prepare.choose_block_bytes = lambda sources: 20_000
    megadeberta.data_prep.prepare.load_or_encode = load_or_encode_slowly
    options = PrepOptions(
        corpora=(Path(sys.argv[1]),),
        output=Path(sys.argv[2]),
        vocabulary=VocabularyOptions(size=600),
        workers=int(sys.argv[3]),
    )
    prepare(options, console=Console(quiet=True), plot=lambda folder, lengths: None)
