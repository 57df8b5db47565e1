"""`python -m megadeberta`: the console script, for launchers that start a module."""

from megadeberta.cli import main

if __name__ == "__main__":
    main()
