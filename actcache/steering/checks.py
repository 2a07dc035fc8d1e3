"""The words of a steering, and checks of its fields; each error names the field, in one line."""

import math
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from typing import Any, Literal, NoReturn, get_args

import numpy as np
from jaxtyping import Float32, Float64

from actcache.errors import ActcacheError

Operator = Literal["add", "ablate", "set", "turn_to", "rotate"]
OPERATORS: tuple[Operator, ...] = get_args(Operator)

PLANE_OPERATORS: tuple[Operator, ...] = ("turn_to", "rotate")
"""Operators whose vectors are planes `[k, 2, d]` and whose strength is an angle in degrees."""

UNIT_OPERATORS: tuple[Operator, ...] = ("ablate", "set")
"""Operators whose vectors have norm 1: their strength is a share of a projection, or a projection.
"""

SteeringSite = Literal[
    "resid_post", "resid_pre", "attn_out", "mlp_out", "ln1", "ln2", "ln1_post", "ln2_post"
]
STEERING_SITES: tuple[SteeringSite, ...] = get_args(SteeringSite)

SteeredTokens = Literal["prompt", "completion", "all", "front"]
STEERED_TOKENS: tuple[SteeredTokens, ...] = get_args(SteeredTokens)

ORTHONORMAL = 1e-6
"""Largest deviation of an inner product of unit or orthonormal vectors, in float64."""


OPERATOR_UNITS: Mapping[Operator, str] = {
    "add": "multiplier",
    "ablate": "share",
    "set": "projection",
    "turn_to": "degrees",
    "rotate": "degrees",
}
"""What the strength of an operator counts."""

_LONGEST = 80
"""Characters of a value in a message."""


def refuse(field: str, value: object, expected: str, remedy: str) -> NoReturn:
    """Raise the error of a field; the value may be anything, and is shown in one line."""
    raise ActcacheError(f"steering: {field} is {_shown(value)}, expected {expected}. {remedy}")


def check_choice(field: str, value: Any, words: Sequence[str]) -> None:
    """Refuse a value that is none of some words."""
    if not isinstance(value, str) or value not in words:
        refuse(field, repr(value), ", ".join(words), "Pass one of them.")


def _shown(value: object) -> str:
    text = " ".join(str(value)[: 4 * _LONGEST].split())
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}…"


def check_number(field: str, value: Any) -> float:
    """Make a finite float of a number; -0 becomes 0."""
    is_number = isinstance(value, int | float | np.integer | np.floating)
    if is_number and not isinstance(value, bool):
        try:
            number = float(value)
        except OverflowError:
            number = math.inf
        if math.isfinite(number):
            return number + 0.0
    refuse(field, repr(value), "a finite number", "Pass one.")


def check_bool(field: str, value: Any) -> bool:
    """Refuse what is neither True nor False."""
    if not isinstance(value, bool | np.bool_):
        refuse(field, repr(value), "True or False", "Pass one of them.")
    return bool(value)


def check_layers(field: str, layers: Any) -> tuple[int, ...]:
    """Make a tuple of block numbers from 0, each once and ascending."""
    if not isinstance(layers, Iterable) or isinstance(layers, str | bytes):
        refuse(field, repr(layers), "several block numbers", "Pass for example (13,).")
    numbers = [check_integer(field, layer) for layer in layers]
    if not numbers or numbers[0] < 0 or any(a >= b for a, b in pairwise(numbers)):
        refuse(
            field,
            numbers,
            "block numbers from 0, each once and ascending",
            "Sort them, and their vectors with them.",
        )
    return tuple(numbers)


def check_integer(field: str, value: Any) -> int:
    """Make an int of a whole number."""
    if not isinstance(value, int | np.integer) or isinstance(value, bool):
        refuse(field, repr(value), "a whole number", "Pass one.")
    return int(value)


def check_window(field: str, window: Any) -> tuple[int, int | None]:
    """Make a pair start:stop of decode steps; stop may be None."""
    try:
        start, stop = window
    except (TypeError, ValueError):
        refuse(field, repr(window), "a pair (start, stop) of decode steps", "Pass (0, 1).")
    start = check_integer(f"{field} start", start)
    stop = None if stop is None else check_integer(f"{field} stop", stop)
    if start < 0 or (stop is not None and stop <= start):
        shown = f"{start}:{'' if stop is None else stop}"
        refuse(
            field,
            shown,
            "0 ≤ start < stop",
            "Steps count from 0, and stop is the first that is not steered.",
        )
    return start, stop


def check_array(field: str, values: Any) -> Float32[np.ndarray, "..."]:
    """Make a finite float32 array that cannot be written to; one that is one already is shared."""
    try:
        given = np.asarray(values)
    except ValueError:  # ragged
        given = np.empty(0, object)
    if given.dtype.kind not in "fiu" or not given.size:
        shown = f"of dtype {given.dtype} and shape {list(given.shape)}"
        refuse(field, shown, "an array of numbers", "Pass one vector (or plane) a layer.")
    flags = given.flags
    frozen = flags.owndata and flags.c_contiguous and not flags.writeable
    with np.errstate(over="ignore", invalid="ignore"):  # refused below
        is_ours = frozen and given.dtype == np.float32
        array = given if is_ours else np.array(given, np.float32, order="C")
    array.flags.writeable = False
    if not np.isfinite(array).all():
        place = [int(axis) for axis in np.argwhere(~np.isfinite(array))[0]]
        refuse(field, f"not finite at {place}", "finite float32 values", "Compute them again.")
    return array


def check_shape(field: str, array: np.ndarray, shape: tuple[int | None, ...], what: str) -> None:
    """Refuse another shape; None in `shape` is any size."""
    fits = array.ndim == len(shape) and all(
        size in (None, length) for size, length in zip(shape, array.shape, strict=True)
    )
    if not fits:
        shown_shape = ", ".join("d" if size is None else str(size) for size in shape)
        refuse(field, f"of shape {list(array.shape)}", f"[{shown_shape}], {what}", "Reshape them.")


def check_vectors(
    field: str, vectors: Float32[np.ndarray, "k d"], names: list[str], *, unit: bool
) -> None:
    """Refuse zero vectors, and where `unit` is set, vectors of another norm than 1."""
    for vector, name in zip(vectors, names, strict=True):
        norm = float(np.linalg.norm(vector.astype(np.float64)))
        if norm == 0:
            refuse(field, f"zero at {name}", "a direction there", "Leave that layer out.")
        if unit and abs(norm**2 - 1) > ORTHONORMAL:
            refuse(
                field,
                f"of norm {norm:.6g} at {name}",
                f"norm 1 to {ORTHONORMAL:g}",
                "Divide by the norm in float64.",
            )


def check_planes(field: str, planes: Float32[np.ndarray, "k 2 d"], names: list[str]) -> None:
    """Refuse planes whose two vectors are not orthonormal."""
    for plane, name in zip(planes, names, strict=True):
        exact: Float64[np.ndarray, "2 d"] = plane.astype(np.float64)
        products = exact @ exact.T
        if np.abs(products - np.eye(2)).max() > ORTHONORMAL:
            refuse(
                field,
                f"no orthonormal plane at {name} (norms {products[0, 0] ** 0.5:.6g} and "
                f"{products[1, 1] ** 0.5:.6g}, inner product {products[0, 1]:.6g})",
                f"norms 1 and inner product 0 to {ORTHONORMAL:g}",
                "Orthonormalise them in float64, for example with numpy.linalg.qr.",
            )


def layer_names(layers: tuple[int, ...]) -> list[str]:
    """What messages call the rows of vectors."""
    return [f"layer {layer}" for layer in layers]


def set_fields(instance: object, **values: Any) -> None:
    """Set fields of a frozen instance that is being made."""
    for name, value in values.items():
        object.__setattr__(instance, name, value)


def check_steering_vectors(
    operator: Operator, tokens: SteeredTokens, layers: tuple[int, ...], vectors: np.ndarray
) -> None:
    """Refuse vectors that do not fit operator, tokens and layers."""
    names, field = layer_names(layers), "vectors"
    if operator in PLANE_OPERATORS:
        check_shape(field, vectors, (len(layers), 2, None), f"a plane a layer for '{operator}'")
        check_planes(field, vectors, names)
    elif tokens == "front":
        check_shape(field, vectors, (None, None), "a vector a token for 'front'")
        if not vectors.any():  # single rows may be zero: both prompts begin with BOS
            refuse(field, "zero", "a direction at some token", "Take other prompts.")
    else:
        check_shape(field, vectors, (len(layers), None), f"a vector a layer for '{operator}'")
        check_vectors(field, vectors, names, unit=operator in UNIT_OPERATORS)


def check_tokens(
    tokens: SteeredTokens,
    *,
    operator: Operator,
    layers: tuple[int, ...],
    window: tuple[int, int | None] | None,
    token_gate: bool,
) -> None:
    """Refuse fields that do not go with which tokens are steered."""
    for field, value, fits, expected in (
        ("operator", operator, operator == "add", "'add'"),
        ("layers", layers, len(layers) == 1, "one layer"),
        ("window", window, window is None, "None"),
        ("gate", "a TokenGate", not token_gate, "a PromptGate or None"),
    ):
        if tokens == "front" and not fits:
            remedy = "Pass other tokens, such as 'all'."
            refuse(field, value, f"{expected} with tokens 'front'", remedy)
    if tokens == "completion" and window is not None and window[1] == 1:
        refuse(
            "window",
            f"{window[0]}:1",
            "a stop of 2 or more with tokens 'completion'",
            "Step 0 is the last prompt token's: pass tokens='prompt'.",
        )


def check_text(field: str, value: Any) -> str | None:
    """Refuse what is neither None nor text that can be written."""
    if value is not None:
        if not isinstance(value, str):
            refuse(field, repr(value), "text or None", "Pass one.")
        try:
            value.encode()
        except UnicodeEncodeError:  # a lone surrogate
            refuse(field, repr(value), "text that UTF-8 can write", "Replace its surrogates.")
        return value
    return None


def check_keys(where: str, document: Any, names: Iterable[str]) -> dict[str, Any]:
    """Refuse JSON that is no object of exactly these keys."""
    expected = list(names)
    if not isinstance(document, dict):
        refuse(
            where, type(document).__name__, f"an object of {', '.join(expected)}", "Save it again."
        )
    for name in document.keys() - set(expected):
        refuse(f"{where}.{name}", "unknown", f"some of {', '.join(expected)}", "Upgrade actcache.")
    for name in expected:
        if name not in document:
            refuse(f"{where}.{name}", "missing", f"each of {', '.join(expected)}", "Save it again.")
    return document
