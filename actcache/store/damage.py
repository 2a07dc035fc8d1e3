"""The error of a file that is not what it should be: where, what was found, what was expected."""

from typing import NoReturn

from actcache.errors import FormatError


class DamageError(FormatError):
    """A file is not as this format, or the store's own log, has it."""

    def __init__(self, where: str, found: str, expected: str):
        super().__init__(
            f"'{where}' holds {found}, expected {expected}. The store is damaged, or none of "
            "actcache: see actcache verify."
        )
        self.where = where
        self.found = found
        self.expected = expected


def refuse(where: str, found: str, expected: str) -> NoReturn:
    """Raise the error of a file that holds one thing where another was expected."""
    raise DamageError(where, found, expected)
