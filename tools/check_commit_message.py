"""The rule of CONTRIBUTING.md for commit messages, as git's commit-msg hook: a file in, the breaches on standard error.

python tools/check_commit_message.py .git/COMMIT_EDITMSG
"""

import re
import sys
from pathlib import Path

LONGEST_SUBJECT = 72
SCISSORS = "# ------------------------ >8 ------------------------"
WRITTEN_BY_GIT = ("Merge ", "Revert ", "fixup! ", "squash! ", "amend! ")
_VERBS = """
    add allow change check clean correct create document drop extend fix give implement improve introduce keep leave let
    make merge move refactor remove rename replace say show simplify support take test update use write
""".split()
_TRAILER = re.compile(r"[A-Z][A-Za-z-]+: \S")


def breaches(text: str) -> list[str]:
    """What the message does against the rule; empty for a good one, and for those that git writes itself."""
    lines = [line.rstrip() for line in text.split(SCISSORS)[0].splitlines() if not line.startswith("#")]
    subject, *rest = "\n".join(lines).strip().split("\n")
    if subject.startswith(WRITTEN_BY_GIT):
        return []
    found = []
    if not subject:
        return ["the message is empty"]
    if len(subject) > LONGEST_SUBJECT:
        found.append(f"the subject has {len(subject)} characters, at most {LONGEST_SUBJECT} are allowed")
    if ";" in subject:
        found.append("the subject holds ';': two changes are two commits")
    if subject.endswith("."):
        found.append("the subject ends with a full stop")
    if (verb := _verb_of(subject)) is not None:
        found.append(f"the subject is not in the imperative: write {verb!r}")
    if rest and rest[0]:
        found.append("the second line is not blank")
    if not any(line and not _TRAILER.match(line) for line in rest):
        found.append("there is no body: say why, and how it was checked")
    return found


def _verb_of(subject: str) -> str | None:
    """The imperative of a subject that begins "Adds", "Added" or "Adding", also after "scope: "."""
    first = subject.split(": ")[-1].split(" ")[0].lower()
    for verb in _VERBS:
        stem = verb.removesuffix("e")
        doubled = stem + stem[-1]
        if first in {f"{verb}s", f"{stem}es", f"{stem}ed", f"{stem}ing", f"{doubled}ed", f"{doubled}ing"}:
            return verb
    return None


def main(words: list[str]) -> int:
    """0 for a good message."""
    found = breaches(Path(words[0]).read_text(encoding="utf-8"))
    for breach in found:
        sys.stderr.write(f"commit message: {breach} (CONTRIBUTING.md)\n")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
