"""Every error a user can cause, and the exit code the command line gives it.

A message says what was asked, what was found and what to do. The command line prints it as one line on
standard error and exits with the class's ``exit_code``; a traceback is for bugs only.
"""

EXIT_USAGE = 2
"""Bad configuration, data, checkpoint or layout: change something and start again."""
EXIT_PREEMPTED = 75
"""SIGTERM or SIGUSR1 arrived, a checkpoint was written, the same command resumes."""
EXIT_HUNG = 76
"""A rank made no progress within the time it had; the same command resumes."""
EXIT_DIVERGED = 77
"""The loss or the gradient is not finite; the last checkpoint holds sound weights."""
EXIT_STORAGE = 79
"""Writing failed (disk full, read-only, I/O error); the previous checkpoint is untouched."""
EXIT_PEER_LOST = 80
"""Another rank died or stopped answering; the same command resumes."""
EXIT_REPLICAS = 81
"""Ranks that hold the same weights no longer do: a machine is bad. Without it, the same command resumes."""

EXIT_INTERRUPTED = 130
"""Ctrl-C before there was anything to save."""


class MegadebertaError(Exception):
    """Base of all errors that a user can fix."""

    exit_code = EXIT_USAGE


class ConfigError(MegadebertaError):
    """A recipe, an override or a command-line value is wrong."""


class DataError(MegadebertaError):
    """A corpus, a tokenizer or a token file is missing, damaged or does not fit the recipe."""


class CheckpointError(MegadebertaError):
    """A checkpoint is missing, damaged, unsafe or of another run."""


class ParallelError(MegadebertaError):
    """The processes, ranks or the layout do not fit together."""


class DivergenceError(MegadebertaError):
    """Training produced a value that is not finite."""

    exit_code = EXIT_DIVERGED


class ReplicaError(MegadebertaError):
    """Ranks that train the same weights hold different ones."""

    exit_code = EXIT_REPLICAS


class StorageError(MegadebertaError):
    """The file system refused a write."""

    exit_code = EXIT_STORAGE


class WrongPlaceError(StorageError):
    """A name under which this user can write nothing: below a file, say, that of a folder, or in one of others."""

    exit_code = EXIT_USAGE


class PeerLostError(MegadebertaError):
    """A collective failed because another rank is gone."""

    exit_code = EXIT_PEER_LOST
