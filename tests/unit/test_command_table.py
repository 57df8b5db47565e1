"""The command line imports what is asked for, and no more."""

import subprocess
import sys

from megadeberta.cli import COMMANDS


def test_help_of_prep_imports_no_numpy_and_no_other_command() -> None:
    code = (
        "import sys; sys.argv = ['megadeberta', 'prep', '--help']\n"
        "from megadeberta.cli import main\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        "print([name for name in ('numpy', 'megadeberta.launcher.cli', 'megadeberta.plan.cli') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert "Usage: megadeberta prep" in done.stdout
    assert done.stdout.splitlines()[-1] == "[]"


def test_an_unknown_command_is_compared_with_all_of_them() -> None:
    done = subprocess.run([sys.executable, "-m", "megadeberta", "prop"], capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert done.stderr == "error: No such command 'prop'. Did you mean 'prep'? (`megadeberta --help` explains)\n"
    assert "prep" in COMMANDS
