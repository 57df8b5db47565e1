"""Joining what several machines made of one corpus."""

import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from rich.console import Console

from megadeberta.data.tokenizer import load_tokenizer
from megadeberta.data_prep.checks import check_corpus, check_unknown
from megadeberta.data_prep.duplicates import check_deduplication, find_copies
from megadeberta.data_prep.identity import digest
from megadeberta.data_prep.machines import JoinedParts
from megadeberta.data_prep.outcome import Outcome, publish_set
from megadeberta.data_prep.output_folder import OutputFolder
from megadeberta.data_prep.progress import Stages
from megadeberta.data_prep.publish import Publication


def merge_machines(
    folders: Sequence[Path],
    output: Path,
    *,
    console: Console,
    plot: Callable[[Path, np.ndarray], None],
    overwrite: bool = False,
) -> Outcome:
    """Make ``output`` the set that one machine would have made, from the parts of several.

    Args:
        folders: the ``--output`` of each ``prep --part``, all N of them.
        console: where progress goes.
        plot: draws the ``[D]`` document lengths into the folder.

    Raises:
        DataError: the parts do not belong together, or one is missing or damaged.
        StorageError: the file system refused a write; nothing looks whole that is not.
    """
    began = time.monotonic()
    parts = JoinedParts(folders)
    tokenizer = load_tokenizer(parts.tokenizer)
    options = parts.options(output=output, overwrite=overwrite, part=None, workers=len(os.sched_getaffinity(0)))
    check_deduplication(options)
    corpus, folder, run_key = parts.corpus(), OutputFolder(output), digest(parts.agree)
    sources = corpus.sources
    with folder.lock(), Stages(console) as stages:
        if folder.is_finished(run_key, {"split": "train", **options.recorded()}, overwrite=overwrite):
            return Outcome(*folder.manifests(), text_bytes=0, seconds=0.0, was_finished=True)
        with folder.unfinished() as scratch:
            stages.begin(f"reading {len(folders)} parts", total=None)
            counts, tally = parts.count(sources)
            check_corpus(tally, options, sources)
            check_unknown(counts, sources, options)
            report = {"run_key": run_key, "machines": len(folders)}
            copies = find_copies(parts, counts.numbers, options, tokenizer=tokenizer, folder=scratch, stages=stages)
            publication = Publication(options, sources, parts, counts.numbers, copies=copies, tokenizer=tokenizer)
            return publish_set(
                publication, folder, report, corpus, counts, tally, stages=stages, plot=plot, began=began
            )
