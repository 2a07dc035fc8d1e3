"""The Zarr v3 metadata documents of a store: made from the schema, and parsed again.

A document is accepted only if it equals, value for value, the one that the schema makes from what
was read out of it. So nothing but this format gets in: no other codec, chunk, data type or
attribute. Parsers raise `DamageError`.
"""

import json
import re
from collections.abc import Callable, Mapping
from typing import Any, NoReturn

import numpy as np

from actcache.errors import FormatError, MismatchError, refuse
from actcache.store.schema import DOCUMENT_LIMIT, FORMAT, Column, Dtype, Root, RowArray

Document = dict[str, Any]

Check = Callable[[Any], bool]
"""Whether a JSON value is one that a field may have."""

GROUP: Document = {"zarr_format": 3, "node_type": "group", "attributes": {}}
"""The document of a folder between the store and a row array."""

_LITTLE = {"name": "bytes", "configuration": {"endian": "little"}}
_ONE_BYTE = {"name": "bytes"}
_NUMBERS = ("bool", *(f"{u}int{b}" for u in ("", "u") for b in (8, 16, 32, 64)))
_FLOATS = ("float16", "float32", "float64")
_LOGICAL: dict[str, Dtype] = {"float32": "float32", "float16": "float16", "uint16": "bfloat16"}
_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")


def is_a(kind: type) -> Check:
    """A value of exactly this type: True is no integer."""
    return lambda value: type(value) is kind


def list_of(check: Check, length: int | None = None) -> Check:
    """A list of values that each pass a check."""
    return lambda value: (
        type(value) is list and (length is None or len(value) == length) and all(map(check, value))
    )


def integer(first: int, stop: int) -> Check:
    """An integer of a range."""
    return lambda value: type(value) is int and first <= value < stop


def text(*choices: str) -> Check:
    """One of these words."""
    return lambda value: type(value) is str and value in choices


def match_fields(value: Any, fields: Mapping[str, Check], where: str, expected: str) -> Document:
    """The named fields of a JSON object, if each passes its check."""
    if type(value) is not dict or not all(check(value.get(n)) for n, check in fields.items()):
        refuse(where, "another document", expected)
    return {name: value.get(name) for name in fields}


def encode(document: Document, *, indent: int | None = 2) -> bytes:
    """The JSON of a document, as it stands on disk; refuses what readers would not accept."""
    try:
        raw = json.dumps(document, indent=indent, allow_nan=False, ensure_ascii=False).encode()
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
    """A document from its JSON: an object of at most 1 MB."""
    if len(raw) > DOCUMENT_LIMIT:
        refuse(where, f"{len(raw)} bytes", f"{DOCUMENT_LIMIT} at most")
    try:
        document = _DECODER.decode(raw.decode("utf-8"))
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


_ROOT = {
    "kind": text("residuals", "sweep"),
    "complete": is_a(bool),
    "n": integer(1, 1 << 48),
    "shard_rows": integer(1, 1 << 48),
    "shard_reason": is_a(str),
    "config": is_a(dict),
    "provenance": lambda value: type(value) is dict and type(value.get("model", {})) is dict,
    "certificate": lambda _anything: True,
}


def parse_root(document: Document, where: str) -> Root:
    """What the attributes of the group say."""
    attributes = document.get("attributes")
    if type(attributes) is dict:
        number = attributes.get("format")
        if type(number) is int and number > FORMAT:
            raise FormatError(
                f"'{where}' has format {number}; this actcache reads {FORMAT}. Upgrade actcache."
            )
        if attributes.get("kind") == "archive":
            raise FormatError(
                f"'{where}' belongs to an archive, which is compressed, expected a store. Unpack "
                "it with: actcache import ARCHIVE.zarr -o STORE.zarr"
            )
    root = Root(**match_fields(attributes, _ROOT, where, "the attributes of a store of format 1"))
    if root.shard_rows > root.n:
        refuse(where, f"shards of {root.shard_rows} rows", f"{root.n} at most")
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
    match document:
        case {"codecs": [{"name": "sharding_indexed"}]}:
            return True
    return False


_ROW_ARRAY = {
    "shape": list_of(integer(0, 1 << 48), 3),
    "dimension_names": list_of(lambda name: type(name) is str and 0 < len(name) < 256, 3),
    "data_type": text(*_LOGICAL),
}


def parse_row_array(name: str, document: Document, *, root: Root, where: str) -> RowArray:
    """The row array of this store that a document describes."""
    read = match_fields(document, _ROW_ARRAY, where, "that of a row array")
    _, n_layers, width = read["shape"]
    if not (0 < n_layers < 1 << 31 and 0 < width < 1 << 31):
        refuse(where, "another document", "that of a row array")
    dtype = _LOGICAL[read["data_type"]]
    array = RowArray(name, n_layers, width, dtype, tuple(read["dimension_names"]))
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


_COLUMN = {
    "shape": list_of(integer(0, 1 << 48)),
    "dimension_names": list_of(lambda name: name is None or type(name) is str),
    "data_type": text("string", *_NUMBERS, *_FLOATS),
    "attributes": is_a(dict),
}


def parse_column(name: str, document: Document, where: str) -> Column:
    """The column that a document describes."""
    read = match_fields(document, _COLUMN, where, "that of a column")
    shape, names, dtype = read["shape"], read["dimension_names"], read["data_type"]
    part_of = read["attributes"].get("ragged")
    if (
        len(shape) not in ((1,) if dtype == "string" else (1, 2))
        or len(names) != len(shape)
        or not isinstance(part_of, str | None)
    ):
        refuse(where, "another document", "that of a column")
    column = Column(name, dtype, tuple(shape), tuple(names), part_of)
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
    """Bytes of a record, from the document of a log of so many."""
    fields = {"shape": list_of(integer(0, 1 << 48), 2)}
    record_bytes: int = match_fields(document, fields, where, "that of the log")["shape"][1]
    if not 0 < record_bytes <= DOCUMENT_LIMIT:
        refuse(where, f"records of {record_bytes} bytes", f"{DOCUMENT_LIMIT} at most")
    _require_same(commits_document(n_records, record_bytes), document, where)
    return record_bytes


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


def _require_same(expected: Document, document: Document, where: str) -> None:
    # Compared as text: Python's == takes True for 1 and 1 for 1.0.
    if json.dumps(expected, sort_keys=True) != json.dumps(document, sort_keys=True):
        refuse(where, "another document", "exactly that of format 1")


def _no_constant(name: str) -> NoReturn:
    raise ValueError(name)


_DECODER = json.JSONDecoder(parse_constant=_no_constant)  # made once: a log has many records
