"""One rule for the names of behaviors, labels and samples: asked of rows, and of others' stores.

Such names become part of files, arrays and tables, and are shown on terminals.
"""

import unicodedata
from collections.abc import Iterable
from difflib import get_close_matches

MAX_BYTES = 200
"""Of the name of a behavior or a label in UTF-8; file systems take 255 with a suffix."""

MAX_ID_BYTES = 1000
"""Of an id, which names no file."""

VARIANT_MARK = "@"
"""What stands between a behavior and a variant in tables and arrays, as in `tidy@sys_pos`."""


def name_problem(name: str, *, is_id: bool = False) -> str | None:
    """Say what is wrong with the name of a behavior, a label or (`is_id`) a sample; else None.

    Names are printable text of one line and limited length; those of behaviors and labels are no
    paths and hold no `@`.

    Example:
        >>> name_problem("tidy@home")
        "is 'tidy@home', expected a name without @, which is put before a variant"
        >>> name_problem("power seeking") is name_problem("tidy/3@user_pos", is_id=True) is None
        True
    """
    most = MAX_ID_BYTES if is_id else MAX_BYTES
    n_bytes = len(name.encode("utf-8", "surrogatepass"))
    if n_bytes > most:
        return f"is {n_bytes:,} bytes long, expected at most {most}"
    if not name.isprintable():
        bad = next(c for c in name if not c.isprintable())
        called = unicodedata.name(bad, f"U+{ord(bad):04X}")
        return f"is {name[:60]!r}, expected printable text without {called}"
    if is_id:
        return None
    expected = None
    if name.strip() in (".", "..") or set("/\\") & set(name):
        expected = "/ and \\ (files and arrays are named after it)"
    elif VARIANT_MARK in name:
        expected = "@, which is put before a variant"
    return expected and f"is {name[:60]!r}, expected a name without {expected}"


def suggestion(name: str, known: Iterable[str]) -> str:
    """Ask for the nearest of the known names, with a space at the end; else empty.

    Example:
        >>> suggestion("promt", ["prompt", "label"])
        "Did you mean 'prompt'? "
    """
    near = get_close_matches(str(name), list(known), n=1)
    return f"Did you mean '{near[0]}'? " if near else ""
