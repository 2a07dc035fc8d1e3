"""What must agree before numbers mix: settings and models, compared field by field."""

from typing import Any

from actcache.errors import MismatchError

IDENTITY = ("family", "n_layers", "d_model", "dtype", "weights_sha256")
"""Fields that two stages' models must agree on before their numbers mix."""


def require_same(actual: Any, stored: Any, *, what: str, remedy: str) -> None:
    """Refuse two JSON values that differ; names the first field that does."""
    difference = first_difference(stored, actual)
    if difference is not None:
        field, old, new = difference
        raise MismatchError(f"{what} differ in '{field}': stored {old!r}, found {new!r}. {remedy}")


def first_difference(stored: Any, actual: Any, field: str = "") -> tuple[str, Any, Any] | None:
    """The first field in which two JSON values differ: its dotted name and both values."""
    if isinstance(stored, dict) and isinstance(actual, dict):
        for name in [*stored, *(name for name in actual if name not in stored)]:
            at = f"{field}.{name}".lstrip(".")
            if name not in stored or name not in actual:
                return at, stored.get(name), actual.get(name)
            if (inner := first_difference(stored[name], actual[name], at)) is not None:
                return inner
        return None
    return None if stored == actual else (field, stored, actual)
