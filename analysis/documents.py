"""Dataclasses as JSON documents, and back: the types of the fields say how a value is read."""

from collections.abc import Mapping, Sequence
from dataclasses import MISSING, fields, is_dataclass
from types import NoneType, UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin

import numpy as np

T = TypeVar("T")


class DocumentError(ValueError):
    """A document does not fit the type; says where, what was found and what was expected."""


def plain(value: Any) -> Any:
    """Turn dataclasses into objects and arrays into lists, as JSON has them."""
    if is_dataclass(value) and not isinstance(value, type):
        return {field.name: plain(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, np.ndarray):
        return plain(value.tolist())
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, Mapping):
        return {str(name): plain(entry) for name, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(entry) for entry in value]
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
    if origin in (Union, UnionType):
        return _read_union(args, value, where)
    if origin is Literal:
        _require(value in args, kind, value, where)
        return value
    if is_dataclass(kind):
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
        parts = enumerate(zip(kinds, value, strict=True))
        return tuple(_read(part, entry, f"{where}[{i}]") for i, (part, entry) in parts)
    number = kind is float and type(value) is int  # 1.0 may be written as 1
    _require(type(value) is kind or number, kind, value, where)
    return float(value) if number else value


def _read_union(kinds: Sequence[Any], value: Any, where: str) -> Any:
    if value is None and NoneType in kinds:
        return None
    errors = []
    for kind in kinds:
        if kind is not NoneType:
            try:
                return _read(kind, value, where)
            except DocumentError as error:
                errors.append(error)
    raise errors[0]


def _read_fields(kind: Any, value: Any, where: str) -> Any:
    _require(isinstance(value, dict), kind, value, where)
    known = {field.name: field for field in fields(kind) if field.init}
    for name in value.keys() - known.keys():
        raise DocumentError(f"{where}.{name} is unknown, expected fields of {kind.__name__}")
    for name, field in known.items():
        if name not in value and field.default is MISSING and field.default_factory is MISSING:
            raise DocumentError(f"{where}.{name} is missing, expected {_name(field.type)}")
    # Not `typing.get_type_hints`, which finds nothing in a class under `no_type_check`.
    types = {name: field.type for name, field in known.items()}
    return kind(
        **{name: _read(types[name], entry, f"{where}.{name}") for name, entry in value.items()}
    )


def _read_array(kind: Any, value: Any, where: str) -> Any:
    try:
        array = np.asarray(value)
        if array.dtype.kind == "i" or not array.size:  # whole numbers may be written as 1
            array = array.astype(kind.dtypes[0])
    except ValueError:  # ragged
        array = np.empty(0)
    if array.dtype.kind == "f":
        array = array.astype(kind.dtypes[0])
    _require(isinstance(array, kind), kind, value, where)
    return array


def _require(fits: bool, kind: Any, value: Any, where: str) -> None:
    if not fits:
        found = repr(value)
        found = found if len(found) <= 40 else f"{found[:40]}…"
        raise DocumentError(f"{where or 'the document'} is {found}, expected {_name(kind)}")


def _name(kind: Any) -> str:
    return getattr(kind, "__name__", None) if get_origin(kind) is None else str(kind)  # type: ignore[return-value]  # every class has a name
