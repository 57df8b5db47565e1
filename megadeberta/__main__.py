"""The console script, also as `python -m megadeberta` for launchers that start a module."""

import sys

from megadeberta.errors import EXIT_INTERRUPTED


def main() -> None:
    """Run the command line; Ctrl-C while it is still being loaded ends it without a traceback, as it does later."""
    try:
        from megadeberta.cli import main as run
    except KeyboardInterrupt:
        sys.exit(EXIT_INTERRUPTED)
    run()


if __name__ == "__main__":
    main()
