"""The file of a trained predictor: safetensors with facts as JSON and a checksum in its metadata.

Checks everything it reads: dtypes, shapes that fit one another, finite values, the checksum.
Nothing in a file is executed.
"""

import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from actcache.analysis.files import write_tensors
from actcache.errors import ActcacheError, FormatError, StoreNotFoundError

Result = TypeVar("Result")

Expected = Mapping[str, tuple[type[np.generic], str]]
"""Each array's dtype and dimensions; a dimension has one size in all arrays."""


def write_predictor(
    path: Path, arrays: Mapping[str, np.ndarray], *, kind: str, facts: Mapping[str, Any]
) -> None:
    """Write a file, complete or not at all. `kind` is what it holds, such as "layer predictor"."""
    about = {"format": _format(kind), "about": json.dumps(facts)}
    write_tensors(path, arrays, about={**about, "sha256": _digest(about, arrays)})


def read_predictor(
    path: Path,
    *,
    kind: str,
    parse: Callable[[dict[str, Any], dict[str, np.ndarray]], Result],
) -> Result:
    """Read what `write_predictor` wrote.

    `parse` makes the predictor of facts and arrays, which may be wrong in any way; an error that it
    raises becomes part of the message.
    """
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        raise StoreNotFoundError(f"no {kind} at '{path}'. Pass the file that save wrote.")
    try:
        with safe_open(path, framework="numpy") as file:
            about = file.metadata() or {}
            expected = _format(kind)
            _require(
                about.get("format") == expected,
                f"its format is '{about.get('format')}', this version reads '{expected}'",
            )
            arrays = {name: file.get_tensor(name) for name in list(file.keys())}
        predictor = parse(json.loads(about["about"], parse_constant=_refuse_constant), arrays)
        # Last: errors of `parse` say more.
        whole = about.get("sha256") == _digest(about, arrays)
        _require(whole, "its content does not match its checksum")
    except (
        ActcacheError,
        SafetensorError,
        AttributeError,
        KeyError,
        TypeError,
        ValueError,
        RecursionError,
    ) as error:
        reason = str(error).splitlines() or [""]
        raise FormatError(
            f"'{path}' is not a whole {kind} ({type(error).__name__}: {reason[0]}). Train it "
            "again, or pass a file that save wrote."
        ) from None
    return predictor


def check_arrays(
    arrays: Mapping[str, np.ndarray], expected: Expected, sizes: Mapping[str, int]
) -> None:
    """Raise KeyError or ValueError where an array is missing, not as expected or not finite.

    `sizes` are those of dimensions that are known beforehand.
    """
    known = dict(sizes)
    for name, (dtype, dims) in expected.items():
        array, names = arrays[name], dims.split()
        shown = f"{array.dtype} {list(array.shape)}, expected {np.dtype(dtype)} [{dims}]"
        _require(array.dtype == dtype and array.ndim == len(names), f"'{name}' is {shown}")
        for dim, size in zip(names, array.shape, strict=True):
            expected_size = known.setdefault(dim, size)
            problem = f"'{name}' has {size} in [{dims}], expected {dim} {expected_size}"
            _require(size == expected_size, problem)
        _require(bool(np.isfinite(array).all()), f"'{name}' holds a value that is not finite")


def with_tuples(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Turn lists back into the tuples that settings held before JSON."""
    return {name: tuple(x) if isinstance(x, list) else x for name, x in settings.items()}


def _format(kind: str) -> str:
    return f"actcache {kind} 1"


def _require(fits: bool, problem: str) -> None:
    if not fits:
        raise ValueError(problem)


def _digest(about: Mapping[str, str], arrays: Mapping[str, np.ndarray]) -> str:
    digest = hashlib.sha256()
    for name in ("format", "about"):
        digest.update(about[name].encode() + b"\0")
    for name in sorted(arrays):
        array = np.ascontiguousarray(arrays[name])
        digest.update(f"{name} {array.dtype} {array.shape}\0".encode())
        digest.update(array.data)
    return digest.hexdigest()


def _refuse_constant(name: str) -> float:
    raise ValueError(f"a number is {name}, expected a finite one")
