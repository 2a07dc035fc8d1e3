"""The Zarr v3 metadata documents of a store: made from the schema, and taken apart again.

A document is accepted only if it equals, value for value, the one that the schema makes from what
was read out of it. So nothing but this format gets in: no other codec, chunk, data type or
attribute. Knows JSON; no file.
"""

import json
import re
from typing import Any, NoReturn, TypeGuard

import numpy as np

from actcache.errors import FormatError, MismatchError, refuse
from actcache.store.schema import DOCUMENT_LIMIT, FORMAT, Column, Dtype, Root, RowArray

Document = dict[str, Any]

GROUP: Document = {"zarr_format": 3, "node_type": "group", "attributes": {}}
"""The document of a folder between the store and a row array."""

_LITTLE = {"name": "bytes", "configuration": {"endian": "little"}}
_ONE_BYTE = {"name": "bytes"}
_NUMBERS = ("bool", *(f"{u}int{b}" for u in ("", "u") for b in (8, 16, 32, 64)))
_FLOATS = ("float16", "float32", "float64")
_LOGICAL: dict[str, Dtype] = {
    "float32": "float32",
    "float16": "float16",
    "uint16": "bfloat16",
}
_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")


def encode(document: Document) -> bytes:
    """The document's JSON, as it stands on disk.

    Raises:
        MismatchError: it holds what JSON does not, such as NaN, or is larger than readers accept.
    """
    try:
        raw = json.dumps(document, indent=2, allow_nan=False, ensure_ascii=False).encode()
    except ValueError as error:  # a lone surrogate is one too
        raise MismatchError(
            f"what is to be recorded with the store is not JSON ({error}), expected finite numbers "
            "and text. Change that field."
        ) from None
    if len(raw) > DOCUMENT_LIMIT:
        raise MismatchError(
            f"what is to be recorded with the store takes {len(raw)} bytes of JSON, expected "
            f"{DOCUMENT_LIMIT} at most. Record less in config, provenance or certificate."
        )
    return raw


def decode(raw: bytes, where: str) -> Document:
    """A document's JSON.

    Raises:
        FormatError: it is larger than 1 MB, no JSON, or no object.
    """
    if len(raw) > DOCUMENT_LIMIT:
        refuse(where, f"{len(raw)} bytes", f"{DOCUMENT_LIMIT} at most")
    try:
        document = json.loads(raw.decode("utf-8"), parse_constant=_no_constant)
    except (ValueError, RecursionError):  # Unicode errors are ValueErrors
        refuse(where, "no JSON", "a Zarr v3 document")
    if _SURROGATE.search(raw):  # JSON can spell text that is none; see whether it did
        try:
            json.dumps(document, ensure_ascii=False).encode()
        except (UnicodeEncodeError, RecursionError):
            refuse(where, "text that is no Unicode", "a Zarr v3 document")
    if type(document) is not dict:
        refuse(where, f"a {type(document).__name__}", "a Zarr v3 document")
    return document


def root_document(root: Root) -> Document:
    """The group's document."""
    return {
        "zarr_format": 3,
        "node_type": "group",
        "attributes": {
            "format": FORMAT,
            "kind": root.kind,
            "complete": root.complete,
            "n": root.n,
            "shard_rows": root.shard_rows,
            "shard_reason": root.shard_reason,
            "config": root.config,
            "provenance": root.provenance,
            "certificate": root.certificate,
        },
    }


def parse_root(document: Document, where: str) -> Root:
    """What the group's attributes say.

    Raises:
        FormatError: a higher format, or not this one.
    """
    attributes = document.get("attributes")
    found = attributes.get("format") if type(attributes) is dict else None
    if type(found) is int and found > FORMAT:
        raise FormatError(
            f"'{where}' has format {found}; this actcache reads {FORMAT}. Upgrade actcache."
        )
    if type(attributes) is dict and attributes.get("kind") == "archive":
        raise FormatError(
            f"'{where}' belongs to an archive, which is compressed, expected a store. Unpack it "
            "with: actcache import ARCHIVE.zarr -o STORE.zarr"
        )
    types = {
        "kind": str,
        "complete": bool,
        "n": int,
        "shard_rows": int,
        "shard_reason": str,
        "config": dict,
        "provenance": dict,
    }
    if (
        type(attributes) is not dict
        or any(type(attributes.get(name)) is not kind for name, kind in types.items())
        or attributes["kind"] not in ("residuals", "sweep")
        or not 0 < attributes["shard_rows"] <= attributes["n"] < 1 << 48
    ):
        refuse(where, "other attributes", "those of a store of format 1")
    root = Root(
        **{name: attributes[name] for name in types}, certificate=attributes.get("certificate")
    )
    _require_same(root_document(root), document, where)
    return root


def row_array_document(array: RowArray, root: Root) -> Document:
    """The document of one row array."""
    inner = {
        "chunk_shape": [root.shard_rows, 1, array.width],
        "codecs": [_LITTLE],
        "index_codecs": [_LITTLE, {"name": "crc32c"}],
        "index_location": "end",
    }
    return _array_document(
        [root.n, array.n_layers, array.width],
        [root.shard_rows, array.n_layers, array.width],
        data_type=array.stored,
        fill_value=0 if array.dtype == "bfloat16" else 0.0,
        codecs=[{"name": "sharding_indexed", "configuration": inner}],
        attributes={"dtype": "bfloat16"} if array.dtype == "bfloat16" else {},
        dimension_names=list(array.dimension_names),
    )


def is_row_array(document: Document) -> bool:
    """Whether it can only be a row array: it is sharded."""
    codecs = document.get("codecs")
    return (
        type(codecs) is list
        and len(codecs) == 1
        and type(codecs[0]) is dict
        and codecs[0].get("name") == "sharding_indexed"
    )


def parse_row_array(name: str, document: Document, *, root: Root, where: str) -> RowArray:
    """The row array that a document describes.

    Raises:
        FormatError: it is none of this format and this store.
    """
    shape, names = document.get("shape"), document.get("dimension_names")
    data_type = document.get("data_type")
    if (
        not _are_sizes(shape, n_dimensions=(3,))
        or not all(0 < size < 1 << 31 for size in shape[1:])
        or type(names) is not list
        or [type(name) for name in names] != [str] * 3
        or not all(0 < len(name) < 256 for name in names)
        or type(data_type) is not str
        or data_type not in _LOGICAL
    ):
        refuse(where, "another document", "that of a row array")
    array = RowArray(name, shape[1], shape[2], _LOGICAL[data_type], tuple(names))
    _require_same(row_array_document(array, root), document, where)
    return array


def column_document(column: Column) -> Document:
    """The document of a column."""
    if column.dtype == "string":
        codecs: list[Document] = [{"name": "vlen-utf8", "configuration": {}}]
        fill: Any = ""
    else:
        codecs = [_ONE_BYTE if np.dtype(column.dtype).itemsize == 1 else _LITTLE]
        fill = False if column.dtype == "bool" else 0.0 if column.dtype in _FLOATS else 0
    return _array_document(
        list(column.shape),
        [max(size, 1) for size in column.shape],
        data_type=column.dtype,
        fill_value=fill,
        codecs=codecs,
        attributes={"ragged": column.part_of} if column.part_of is not None else {},
        dimension_names=list(column.dimension_names),
    )


def parse_column(name: str, document: Document, where: str) -> Column:
    """The column that a document describes.

    Raises:
        FormatError: it is none of this format.
    """
    shape, names = document.get("shape"), document.get("dimension_names")
    data_type, attributes = document.get("data_type"), document.get("attributes")
    if (
        not _are_sizes(shape, n_dimensions=(1, 2))
        or type(names) is not list
        or len(names) != len(shape)
        or not all(name is None or type(name) is str for name in names)
        or type(data_type) is not str
        or data_type not in ("string", *_NUMBERS, *_FLOATS)
        or (data_type == "string" and len(shape) != 1)
        or type(attributes) is not dict
        or not isinstance(attributes.get("ragged"), str | None)
    ):
        refuse(where, "another document", "that of a column")
    column = Column(name, data_type, tuple(shape), tuple(names), attributes.get("ragged"))
    _require_same(column_document(column), document, where)
    return column


def commits_document(n_records: int, record_bytes: int) -> Document:
    """The document of the log."""
    return _array_document(
        [n_records, record_bytes],
        [1, record_bytes],
        data_type="uint8",
        fill_value=0,
        codecs=[_ONE_BYTE],
        attributes={},
        dimension_names=["record", "byte"],
    )


def parse_commits(document: Document, *, n_records: int, where: str) -> int:
    """Bytes of a record.

    Raises:
        FormatError: it is not the log of a store with that many records.
    """
    shape = document.get("shape")
    if not _are_sizes(shape, n_dimensions=(2,)) or not 0 < shape[1] <= DOCUMENT_LIMIT:
        refuse(where, "another document", "that of the log of commits")
    _require_same(commits_document(n_records, shape[1]), document, where)
    return int(shape[1])


def _array_document(
    shape: list[int],
    chunk_shape: list[int],
    *,
    data_type: str,
    fill_value: Any,
    codecs: list[Document],
    attributes: Document,
    dimension_names: list[str] | list[str | None],
) -> Document:
    return {
        "zarr_format": 3,
        "node_type": "array",
        "shape": shape,
        "data_type": data_type,
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": chunk_shape}},
        # A dot keeps all chunks of an array in one folder, which one sync makes durable.
        "chunk_key_encoding": {"name": "default", "configuration": {"separator": "."}},
        "fill_value": fill_value,
        "codecs": codecs,
        "attributes": attributes,
        "dimension_names": dimension_names,
    }


def _are_sizes(shape: Any, *, n_dimensions: tuple[int, ...]) -> TypeGuard[list[int]]:
    return (
        type(shape) is list
        and len(shape) in n_dimensions
        and all(type(size) is int and 0 <= size < 1 << 48 for size in shape)
    )


def _require_same(expected: Document, found: Document, where: str) -> None:
    # Compared as text: Python's == takes True for 1 and 1 for 1.0.
    if json.dumps(expected, sort_keys=True) != json.dumps(found, sort_keys=True):
        refuse(where, "another document", "exactly what format 1 has there")


def _no_constant(name: str) -> NoReturn:
    raise ValueError(name)
