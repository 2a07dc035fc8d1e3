"""The errors that a user can mend. Each message says what was found, what was expected, what to do.

The command line prints them as one line without a traceback; anything else that is raised is a
bug and shows where.
"""

from typing import NoReturn


class ActcacheError(Exception):
    """Base of every error that the user can mend."""


class RowError(ActcacheError, ValueError):
    """A row of the data cannot be used: names file, line, key and remedy."""


class RenderError(ActcacheError, ValueError):
    """A prompt or completion cannot be turned into the tokens that the method needs."""


class ModelError(ActcacheError, ValueError):
    """A model cannot be loaded, or is of a family that the engine does not handle."""


class StoreNotFoundError(ActcacheError, FileNotFoundError):
    """No store lies at the path."""


class StoreExistsError(ActcacheError, FileExistsError):
    """A store (or results) lies where a new one was to be written."""


class IncompleteStoreError(ActcacheError):
    """The store's build was interrupted; it opens only when that is asked for."""


class BucketError(ActcacheError, OSError):
    """A bucket cannot be reached, or refuses what was asked of it."""


class FormatError(ActcacheError, ValueError):
    """The files are not a store that this version reads, or they are damaged."""


class DamageError(FormatError):
    """A file is not as this format, or the store's own log, has it."""

    def __init__(self, where: str, actual: str, expected: str):
        super().__init__(
            f"'{where}' holds {actual}, expected {expected}. The store is damaged, or none of "
            "actcache: see actcache verify."
        )
        self.where = where
        self.actual = actual
        self.expected = expected


class MismatchError(ActcacheError, ValueError):
    """Two things that must agree do not: names the field and both values."""


class NotFiniteError(ActcacheError, ValueError):
    """A residual is not finite, or overflows the dtype that it is stored in."""


def refuse(where: str, actual: str, expected: str) -> NoReturn:
    """Raise the error of a file that holds one thing where another was expected."""
    raise DamageError(where, actual, expected)
