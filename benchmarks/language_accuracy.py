"""How often `prep` tells the language of a paragraph, and how fast, on a book in 26 languages.

    apt-get download debian-handbook && dpkg-deb -x debian-handbook_*.deb handbook
    python benchmarks/language_accuracy.py handbook/usr/share/doc/debian-handbook/html

A paragraph that is mostly of words of the English edition is left out, because translations lack some.
"""

import argparse
import html
import re
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from megadeberta.data_prep.languages import language_of

ENGLISH = "en-US"
_CODES = {"nb": "no"}
"""What the library calls a language that the book calls otherwise."""
_LONG, _SHORT = 200, 50
_PARAGRAPH = re.compile(r'<p[^>]*>(.*?)</p>|<div class="para">(.*?)</div>', re.DOTALL)


def main() -> None:
    """Print a row per language."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder
    english = {word for text in paragraphs(folder / ENGLISH) for word in words(text)}
    language_of("")  # loads the model
    kinds = (f"{_LONG} characters or more", f"{_SHORT} to {_LONG - 1}")
    seen: dict[str, Counter[str]] = {kind: Counter() for kind in kinds}
    right: dict[str, Counter[str]] = {kind: Counter() for kind in kinds}
    seconds = 0.0
    for edition in sorted(path for path in folder.iterdir() if path.is_dir()):
        code = edition.name.split("-")[0]
        code = _CODES.get(code, code)
        for text in paragraphs(edition):
            known = [word in english for word in words(text)]
            if len(text) < _SHORT or (edition.name != ENGLISH and sum(known) > 0.6 * len(known)):
                continue
            began = time.process_time()
            found = language_of(text)
            seconds += time.process_time() - began
            kind = kinds[len(text) < _LONG]
            seen[kind][code] += 1
            right[kind][code] += found == code
    for code in seen[kinds[0]]:
        print(code, *(f"{kind}: {right[kind][code]} of {seen[kind][code]}" for kind in kinds), sep="  ")
    for kind in kinds:
        print(f"all, {kind}: {right[kind].total()} of {seen[kind].total()}")
    print(f"{sum(map(Counter.total, seen.values())) / seconds:.0f} paragraphs per CPU second")


def paragraphs(folder: Path) -> Iterator[str]:
    """The text of each, without markup."""
    for path in sorted(folder.glob("*.html")):
        for groups in _PARAGRAPH.findall(path.read_text(encoding="utf-8")):
            text = " ".join(html.unescape(re.sub(r"<[^>]+>", " ", groups[0] or groups[1])).split())
            if text:
                yield text


def words(text: str) -> list[str]:
    """Runs of letters, small."""
    return re.findall(r"[^\W\d_]+", text.lower())


if __name__ == "__main__":
    main()
