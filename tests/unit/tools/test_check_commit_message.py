"""The commit-msg hook: what it lets through and what it stops."""

import subprocess
import sys
from pathlib import Path

import pytest

from tools.check_commit_message import breaches

ROOT = Path(__file__).parents[3]
BODY = "\n\nWith dp=4 the loss differed from dp=1. Equality test 5 covers it.\n"


@pytest.mark.parametrize(
    "text",
    [
        "Divide losses by the global masked-token count" + BODY,
        "launch --hostfile: act on signals" + BODY,
        "x" * 72 + BODY,
        "Add a test" + BODY + "\nSigned-off-by: A <a@b>\n",
        "# a comment of git's editor\nAdd a test\n\nWhy.\n# another\n",
        "Address ranks by number" + BODY,
        "Merge branch 'plan'\n",
        'Revert "Add a test"\n',
        "fixup! Add a test\n",
    ],
)
def test_good_message_passes(text: str) -> None:
    assert breaches(text) == []


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("x" * 73 + BODY, "has 73 characters, at most 72"),
        ("Mend A; mend B" + BODY, "holds ';': two changes are two commits"),
        ("Add a test." + BODY, "ends with a full stop"),
        ("Added a test" + BODY, "write 'add'"),
        ("Adds a test" + BODY, "write 'add'"),
        ("plan: removing a table" + BODY, "write 'remove'"),
        ("Dropped a table" + BODY, "write 'drop'"),
        ("Fixes the loss" + BODY, "write 'fix'"),
        ("Add a test\nmore of it\n", "the second line is not blank"),
        ("Add a test\n", "there is no body"),
        ("Add a test\n\nSigned-off-by: A <a@b>\n", "there is no body"),
        ("Add a test\n\n# only a comment\n", "there is no body"),
        ("Add a test\n# ------------------------ >8 ------------------------\ndiff\n\nbody\n", "there is no body"),
        ("# nothing\n", "the message is empty"),
    ],
)
def test_breach_is_named(text: str, message: str) -> None:
    assert any(message in breach for breach in breaches(text)), breaches(text)


def test_hook_gives_1_and_a_line_for_each_breach(tmp_path: Path) -> None:
    message = tmp_path / "COMMIT_EDITMSG"
    message.write_text("Added a; b\n")
    command = [sys.executable, str(ROOT / "tools" / "check_commit_message.py"), str(message)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.count("commit message: ") == 3
    message.write_text("Add a test" + BODY)
    assert subprocess.run(command, capture_output=True).returncode == 0
