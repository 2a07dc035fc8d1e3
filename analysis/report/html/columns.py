"""Tables as the page holds them: by column, each text once, numbers of four digits."""

import base64
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Int, Num

DIGITS = 4
"""Of a number in the page: more than a picture shows. OUT holds them all."""


def columns(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Turn rows with the same keys into columns; texts become codes of a list of words."""
    names = list(rows[0]) if rows else []
    return {name: _column([row[name] for row in rows]) for name in names}


def _column(values: Sequence[Any]) -> Any:
    if all(isinstance(value, str) for value in values):
        return coded(values)
    return [rounded(value) for value in values]


def coded(texts: Sequence[str]) -> dict[str, Any]:
    """Write texts as a list of different ones, and the place of each in it."""
    place = {text: i for i, text in enumerate(dict.fromkeys(texts))}
    return {"words": list(place), "codes": [place[text] for text in texts]}


def rounded(value: Any) -> Any:
    """Round a number to four digits; what JSON has no number for is null."""
    if isinstance(value, bool | np.bool_):
        return bool(value)
    if isinstance(value, int | np.integer):
        return int(value)
    if value is None or not math.isfinite(value):
        return None
    return float(f"{value:.{DIGITS}g}")


def packed(values: Int[np.ndarray, "..."]) -> str:
    """Write whole numbers as base64 of their bytes, little end first."""
    little = np.ascontiguousarray(values, values.dtype.newbyteorder("<"))
    return base64.b64encode(little.tobytes()).decode()


def scaled(values: Num[np.ndarray, "..."], kind: type[np.signedinteger[Any]]) -> tuple[Any, float]:
    """Scale numbers to the whole range of an integer type: the integers, and the size of one."""
    largest = float(np.abs(values).max(initial=0.0))
    step = largest / np.iinfo(kind).max or 1.0
    return np.rint(values / step).astype(kind), step
