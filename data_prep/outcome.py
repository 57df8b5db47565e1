"""The end of every preparation: token files and report written, and what is worth a look said."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from megadeberta.data.shard_manifest import ShardManifest
from megadeberta.data_prep.bad_lines import CorpusTally
from megadeberta.data_prep.output_folder import OutputFolder
from megadeberta.data_prep.parts import Counts
from megadeberta.data_prep.progress import Stages
from megadeberta.data_prep.publish import Publication
from megadeberta.data_prep.report import describe_corpus, describe_result, describe_vocabulary, report_files
from megadeberta.data_prep.sources import Corpus


@dataclass(frozen=True)
class Outcome:
    """A finished set. ``was_finished`` = the folder held it already and nothing was done."""

    train: ShardManifest | None
    """None where only a part was encoded, to be merged with those of other machines."""
    valid: ShardManifest | None
    text_bytes: int
    seconds: float
    was_finished: bool


def publish_set(
    publication: Publication,
    output: OutputFolder,
    report: dict[str, Any],
    corpus: Corpus,
    counts: Counts,
    tally: CorpusTally,
    *,
    stages: Stages,
    plot: Callable[[Path, np.ndarray], None],
    began: float,
) -> Outcome:
    """Write the token files and the report, and say on the screen what is worth a look."""
    report = {
        **report,
        "files": report_files(corpus),
        "corpus": describe_corpus(tally),
        "num_tokens": counts.num_tokens,
        "unknown_tokens": counts.num_unknown,
        "vocabulary": describe_vocabulary(publication.tokenizer, counts, text_bytes=tally.total("text_bytes")),
    }
    train, valid = publication.publish(output, report, stages=stages, plot=plot)
    for line in describe_result(report, publication.copies):
        stages.say(line)
    return Outcome(train, valid, tally.total("text_bytes"), time.monotonic() - began, was_finished=False)
