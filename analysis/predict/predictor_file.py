"""The file that a trained predictor is kept in: safetensors, facts as JSON beside it, a checksum.

Checks all that it reads: dtypes, shapes that fit one another, finite values, the checksum. Nothing
in a file is executed. Refuses to know what arrays and facts mean.
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
    """Write a file, complete or not at all.

    Args:
        path: where.
        arrays: whatever `read_predictor` is to give back.
        kind: what it is, such as "layer predictor"; stands in the file.
        facts: the rest, as JSON has it.
    """
    about = {"format": _format(kind), "about": json.dumps(facts)}
    write_tensors(path, arrays, about={**about, "sha256": _digest(about, arrays)})


def read_predictor(
    path: Path,
    *,
    kind: str,
    parse: Callable[[dict[str, Any], dict[str, np.ndarray]], Result],
) -> Result:
    """Read what `write_predictor` wrote.

    Args:
        path: the file.
        kind: what it should be.
        parse: makes the predictor of facts and arrays, which may be wrong in any way; whatever
            error it then raises says what was found.

    Raises:
        StoreNotFoundError: there is no file.
        FormatError: it is damaged, or something else.
    """
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        raise StoreNotFoundError(f"no {kind} at '{path}'. Pass the file that save wrote.")
    try:
        with safe_open(path, framework="numpy") as file:
            about = file.metadata() or {}
            _require_format(about, kind)
            arrays = {name: file.get_tensor(name) for name in list(file.keys())}
        found = parse(json.loads(about["about"], parse_constant=_refuse_constant), arrays)
        _require_digest(about, arrays)  # last: what `parse` refuses, it names
    except (
        ActcacheError,
        SafetensorError,
        AttributeError,
        KeyError,
        TypeError,
        ValueError,
        RecursionError,
    ) as error:
        told = str(error).splitlines() or [""]
        raise FormatError(
            f"'{path}' is not a whole {kind} ({type(error).__name__}: {told[0]}). Train it again, "
            "or pass a file that save wrote."
        ) from None
    return found


def check_arrays(
    arrays: Mapping[str, np.ndarray], expected: Expected, sizes: Mapping[str, int]
) -> None:
    """Raise where an array is missing, not as expected, or holds a value that is not finite.

    Args:
        arrays: what was read.
        expected: the arrays that there should be.
        sizes: of the dimensions whose sizes are known beforehand.

    Raises:
        KeyError: one is missing.
        ValueError: one is wrong; says which, and how.
    """
    known = dict(sizes)
    for name, (dtype, dims) in expected.items():
        array, names = arrays[name], dims.split()
        if array.dtype != dtype or array.ndim != len(names):
            raise ValueError(
                f"'{name}' is {array.dtype} {list(array.shape)}, expected "
                f"{np.dtype(dtype)} [{dims}]"
            )
        for dim, size in zip(names, array.shape, strict=True):
            if known.setdefault(dim, size) != size:
                raise ValueError(f"'{name}' has {size} in [{dims}], expected {dim} {known[dim]}")
        if not np.isfinite(array).all():
            raise ValueError(f"'{name}' holds a value that is not finite")


def with_tuples(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings as they were before JSON made lists of their tuples."""
    return {name: tuple(x) if isinstance(x, list) else x for name, x in settings.items()}


def _format(kind: str) -> str:
    return f"actcache {kind} 1"


def _require_format(about: Mapping[str, str], kind: str) -> None:
    if about.get("format") != _format(kind):
        raise ValueError(
            f"its format is '{about.get('format')}', this version reads '{_format(kind)}'"
        )


def _require_digest(about: Mapping[str, str], arrays: Mapping[str, np.ndarray]) -> None:
    if about.get("sha256") != _digest(about, arrays):
        raise ValueError("its content does not match its checksum")


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
