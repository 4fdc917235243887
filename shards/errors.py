"""Errors that a user can act on: one line (fact, value, remedy) and the exit code of the command.

Anything else that escapes is a bug and keeps its traceback (exit code 1).
"""


class CoresetError(Exception):
    """Base of all expected errors; ``exit_code`` is what the command line returns."""

    exit_code = 2


class UsageError(CoresetError):
    """A wrong argument or input: unknown class, class smaller than IPC, changed input on resume."""


class DataError(CoresetError):
    """The data are worse than the limits allow, or damaged."""

    exit_code = 3


class ManifestError(DataError):
    """A packed data set whose files and manifest do not agree, or whose manifest cannot be read."""


class StoreError(DataError):
    """A store (scores, features, results, condensed set) that is damaged or of another version."""


class MachineError(CoresetError):
    """The machine is unfit: out of disk or memory, a package or device missing."""

    exit_code = 4


class LockedError(CoresetError):
    """Another process is writing to the same output."""

    exit_code = 5


class InterruptedRunError(CoresetError):
    """SIGTERM or SIGUSR1 arrived; what was committed is kept and the same command continues."""

    exit_code = 75
