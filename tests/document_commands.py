"""The commands that README and docs give, as words: those of their shell blocks, and those in backticks."""

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
_BLOCK = re.compile(r"^( *)```sh\n(.*?)^\1```$", re.MULTILINE | re.DOTALL)
_ENDS = {"&&", "||", ";", "|", "&", "(", ")", "do", "done", "then"}
_VARIABLE = re.compile(r'([A-Z_]+)="([^"]*)"')
_ASSIGNMENT = re.compile(r"[A-Z_]+=")


@dataclass(frozen=True)
class Command:
    """One simple command: its program, arguments, and where it stands."""

    page: str
    line: int
    words: tuple[str, ...]
    in_block: bool
    """Of a shell block, so that it is whole; a text may leave arguments out."""

    def __str__(self) -> str:
        return f"{self.page}:{self.line}: {' '.join(self.words)}"

    def after(self, *start: str) -> tuple[str, ...] | None:
        """The words behind ``start``, wherever it stands: `srun megadeberta train` gives `train`. None = not there."""
        for place in range(len(self.words) - len(start) + 1):
            if self.words[place : place + len(start)] == start:
                return self.words[place + len(start) :]
        return None

    def arguments(self) -> tuple[str, ...] | None:
        """Of a `megadeberta` command, however it is started; None for others."""
        return self.after("megadeberta")


def shell_lines(page: Path) -> Iterator[tuple[int, str]]:
    """The lines of the shell blocks with their numbers, continued lines joined, comments kept."""
    text = page.read_text(encoding="utf-8")
    for block in _BLOCK.finditer(text):
        number, lines = text.count("\n", 0, block.start(2)) + 1, block[2].splitlines()
        while lines:
            first, line = number, lines.pop(0).strip()
            number += 1
            while line.endswith("\\"):
                line = f"{line[:-1]} {lines.pop(0).strip()}"
                number += 1
            if line and not line.startswith("#"):
                yield first, line


def commands(page: Path) -> list[Command]:
    """Every command of a page: those of the blocks, in order, and then those of the text."""
    name, text = page.name, page.read_text(encoding="utf-8")
    found, variables = [], {}
    for number, line in shell_lines(page):
        if variable := _VARIABLE.match(line):
            variables[f"${variable[1]}"] = variable[2]
        for variable_name, value in variables.items():
            line = line.replace(variable_name, value)
        found += [Command(name, number, words, in_block=True) for words in simple(line)]
    prose = re.sub(r"^ *```.*?^ *```$", lambda block: "\n" * block[0].count("\n"), text, flags=re.MULTILINE | re.DOTALL)
    for span in re.finditer(r"`((?:sudo )?(?:megadeberta|make) [^`]+)`", prose):
        number = prose.count("\n", 0, span.start()) + 1
        found += [Command(name, number, words, in_block=False) for words in simple(" ".join(span[1].split()))]
    return found


def simple(line: str) -> list[tuple[str, ...]]:
    """The simple commands of a line, without comments, redirections and assignments in front."""
    lexer = shlex.shlex(line, posix=True, punctuation_chars=True)
    lexer.whitespace_split, lexer.commenters = True, "#"
    found: list[list[str]] = [[]]
    redirected = False
    for word in lexer:
        if redirected or word in ("...", "sudo"):
            redirected = False
        elif word == ">":
            redirected = True
        elif word in _ENDS:
            found.append([])
        elif found[-1] or not _ASSIGNMENT.match(word):
            found[-1].append(word)
    return [tuple(words) for words in found if words]
