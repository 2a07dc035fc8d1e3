"""The columns of a store that rows bring themselves: keys that have no meaning here."""

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from actcache.data.samples import HISTORY, TEXT_COLUMNS, Sample
from actcache.data.spans import SPAN
from actcache.errors import FormatError
from actcache.prompts.render import PARTS
from actcache.store.schema import COMMITS, LEFT_OUT, check_name

_EXACT = 2**53
"""Up to which float64 holds every whole number."""

_TAKEN = (
    *(
        *TEXT_COLUMNS,
        HISTORY,
        SPAN,
        COMMITS,
        LEFT_OUT,
        "control_span",
        "n_tokens",
        "layer",
        "d_model",
        "head",
    ),
    *(f"{part}_tokens{end}" for part in PARTS for end in ("", "_offsets")),
)


@dataclass(frozen=True)
class RowColumns:
    """What rows say beyond what a build reads."""

    values: Mapping[str, np.ndarray | Sequence[str]]
    """Name to one value a row: bool, int64 or float64 where all rows have such, else text."""

    notes: tuple[str, ...]
    """Which keys are ignored, and why."""


def row_columns(samples: Sequence[Sample], sites: Iterable[str]) -> RowColumns:
    """Collect the other keys of all rows as columns.

    A row without a key, or with null, has NaN among numbers and an empty text among texts. Lists
    and objects are written as JSON.

    Args:
        samples: the rows of the store.
        sites: names of folders in the store, which no column can have.
    """
    taken = {name.casefold() for name in (*_TAKEN, *sites)}
    columns: dict[str, np.ndarray | Sequence[str]] = {}
    notes = []
    for name in dict.fromkeys(key for sample in samples for key in sample.extra):
        values = [sample.extra.get(name) for sample in samples]
        if all(value is None for value in values):
            continue
        if reason := _problem(name, values, taken):
            notes.append(f"the key '{name}' of the rows is ignored: {reason}")
            continue
        taken.add(name.casefold())
        columns[name] = _column(values)
    return RowColumns(columns, tuple(notes))


def _problem(name: str, values: Sequence[Any], taken: set[str]) -> str | None:
    if name.casefold() in taken:
        return f"a store has a column of that name; --map row_{name}={name} keeps it"
    try:
        check_name(name)
    except FormatError:
        return "it cannot be the name of a column; --map NAME=KEY gives it another"
    if "/" in name:
        return "the name of a column has no slash; --map NAME=KEY gives it another"
    if any(isinstance(value, bytes) for value in values):
        return "its values are bytes, expected text, numbers or JSON"
    return None


def _column(values: Sequence[Any]) -> np.ndarray | list[str]:
    kinds = {type(value) for value in values if not _is_missing(value)}
    whole = [value for value in values if type(value) is int]
    missing = any(map(_is_missing, values))
    if kinds == {bool} and not missing:
        return np.array(values, bool)
    if kinds == {int} and not missing and all(-(2**63) <= value < 2**63 for value in whole):
        return np.array(values, np.int64)
    if kinds and kinds <= {int, float} and all(abs(value) <= _EXACT for value in whole):
        numbers = [math.nan if value is None else float(value) for value in values]
        return np.array(numbers, np.float64)
    return [_text(value) for value in values]


def _is_missing(value: Any) -> bool:
    return value is None or (isinstance(value, float) and math.isnan(value))


def _text(value: Any) -> str:
    if _is_missing(value):
        return ""
    if isinstance(value, list | dict | bool):
        text = json.dumps(value, ensure_ascii=False, default=str)
    else:
        text = str(value)
    return text.encode("utf-8", "replace").decode()  # half a surrogate pair is no UTF-8
