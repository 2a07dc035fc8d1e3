"""Files of the results folder: dataclasses as JSON and back, text, arrays.

Each file is whole once it has its name. The types of a dataclass's fields say how JSON is read.
"""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, fields, is_dataclass
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin

import numpy as np

from actcache.store.storage.atomic import atomic_path
from actcache.store.storage.safetensors_bytes import safetensors_bytes

T = TypeVar("T")

_HEADER_LIMIT = 1 << 24
_INFINITE = ("-Infinity", "Infinity")
"""How infinite numbers stand in JSON: as text."""


class DocumentError(ValueError):
    """A document does not fit the type; says where, what was found and what was expected."""


def plain(value: Any) -> Any:
    """Turn dataclasses into objects and arrays into lists, as JSON has them."""
    if is_dataclass(value) and not isinstance(value, type):
        return {field.name: plain(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, np.ndarray | np.generic):
        return plain(value.tolist())
    if isinstance(value, Mapping):
        return {str(name): plain(entry) for name, entry in value.items()}
    if isinstance(value, list | tuple):
        return [plain(entry) for entry in value]
    if isinstance(value, float) and math.isinf(value):  # JSON has no such number
        return _INFINITE[value > 0]
    return value


def typed(kind: type[T], document: Any) -> T:
    """Make a `kind` of what `plain` gives; refuses what does not fit.

    Fields that are missing take their defaults; fields that the type does not have are refused.
    Sequences become tuples.

    Raises:
        DocumentError: names the place, and what was found and expected there.
    """
    read: T = _read(kind, document, "")
    return read


def _read(kind: Any, value: Any, where: str) -> Any:
    origin, args = get_origin(kind), get_args(kind)
    if kind is Any:
        return value
    if origin in (Union, UnionType):  # `X | None`
        [inner] = [arg for arg in args if arg is not NoneType]
        return None if value is None else _read(inner, value, where)
    if origin is Literal:
        _require(value in args, kind, value, where)
        return value
    if is_dataclass(kind):
        _require(isinstance(value, dict), kind, value, where)
        return _read_fields(kind, value, where)
    if hasattr(kind, "array_type"):  # jaxtyping
        return _read_array(kind, value, where)
    if origin is not None and issubclass(origin, Mapping):
        _require(isinstance(value, dict), kind, value, where)
        return {name: _read(args[1], entry, f"{where}.{name}") for name, entry in value.items()}
    if origin is not None and issubclass(origin, Sequence):
        _require(isinstance(value, list), kind, value, where)
        kinds = args if origin is tuple and args[-1] is not Ellipsis else (args[0],) * len(value)
        _require(len(kinds) == len(value), kind, value, where)
        return tuple(_read(kinds[i], entry, f"{where}[{i}]") for i, entry in enumerate(value))
    if kind is float and (type(value) is int or value in _INFINITE):  # 1.0 may be written as 1
        return float(value)
    _require(type(value) is kind, kind, value, where)
    return value


def _read_fields(kind: Any, document: Mapping[str, Any], where: str) -> Any:
    # Not `typing.get_type_hints`, which finds nothing in a class under `no_type_check`.
    types = {field.name: field.type for field in fields(kind)}
    for name in document.keys() - types.keys():
        raise DocumentError(f"{where}.{name} is unknown, expected fields of {kind.__name__}")
    for field in fields(kind):
        if field.name not in document and field.default is field.default_factory is MISSING:
            raise DocumentError(f"{where}.{field.name} is missing, expected {_name(field.type)}")
    return kind(
        **{name: _read(types[name], entry, f"{where}.{name}") for name, entry in document.items()}
    )


def _read_array(kind: Any, value: Any, where: str) -> Any:
    try:
        array = np.asarray(_with_infinities(value))
        if array.dtype.kind in "if" or not array.size:  # whole numbers may be written as 1
            array = array.astype(kind.dtypes[0])
    except ValueError:  # ragged
        array = np.empty(0)
    _require(isinstance(array, kind), kind, value, where)
    return array


def _with_infinities(value: Any) -> Any:
    if isinstance(value, list):
        return [_with_infinities(entry) for entry in value]
    return float(value) if isinstance(value, str) and value in _INFINITE else value


def _require(fits: bool, kind: Any, value: Any, where: str) -> None:
    if not fits:
        shown = repr(value)
        shown = shown if len(shown) <= 40 else f"{shown[:40]}…"
        raise DocumentError(f"{where or 'the document'} is {shown}, expected {_name(kind)}")


def _name(kind: Any) -> str:
    return str(kind) if get_origin(kind) else kind.__name__


def write_aside(path: Path, write: Callable[[Path], object]) -> None:
    """Let `write` fill a file beside `path`, then rename it."""
    with atomic_path(path) as temporary:
        write(temporary)


def write_json(path: Path, document: Any) -> None:
    """Write a JSON document; arrays and dataclasses become lists and objects."""
    write_text(path, json.dumps(plain(document), indent=2, allow_nan=False) + "\n")


def write_text(path: Path, text: str) -> None:
    """Write a text file in UTF-8."""
    write_aside(path, lambda aside: aside.write_text(text, encoding="utf-8"))


def write_tensors(
    path: Path, arrays: Mapping[str, np.ndarray], *, about: Mapping[str, str]
) -> None:
    """Write a safetensors file with text metadata."""
    # Not the library's `save_file`, which makes files that only their owner can read.
    encoded = safetensors_bytes(arrays, about)
    write_aside(path, lambda aside: aside.write_bytes(encoded))


def tensor_header(path: Path) -> Mapping[str, Any]:
    """Read which tensors a safetensors file declares; nothing of what is no such file."""
    try:
        with path.open("rb") as file:
            n_bytes = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(min(n_bytes, _HEADER_LIMIT)))
    except (OSError, ValueError, RecursionError):
        return {}
    return header if isinstance(header, dict) else {}


def write_arrays(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Write an npz file; strings as fixed-width text, nothing pickled."""
    write_aside(path, lambda aside: np.savez(aside, allow_pickle=False, **arrays))
