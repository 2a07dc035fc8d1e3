"""Archives: a store compressed without loss into Zarr v3 that any reader opens, and unpacked again.

    ARCHIVE.zarr/    like a store, but with other row arrays and without the log

Row arrays are Zarr v3 `sharding_indexed` with the same shards and inner chunks (S, 1, width), each
of which is bit-shuffled, compressed with zstd (Blosc) and carries a crc32c. The group's attribute
`kind` is `archive`; `digest` is the packed store's.

An archive is a kind of its own, not a store that is read more slowly: everything that reads a
store maps blocks into memory and finds them by arithmetic, and a store's log holds checksums of
bytes that an archive does not have. So it is unpacked to be used, and the digest shows whether it
came back bit for bit. Zarr's own reader does not notice a missing shard; unpacking does.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Shaped

from actcache.errors import refuse
from actcache.store.columns import empty_chunk, parse_left_out, read_column
from actcache.store.copies.fill import Fill
from actcache.store.documents import (
    GROUP,
    Document,
    decode,
    encode,
    is_row_array,
    parse_column,
    parse_root,
    parse_row_array,
    root_document,
    row_array_document,
)
from actcache.store.encoding import block_bytes, shard_bytes
from actcache.store.layout import ROOT, column_name, folders_above, shard_name
from actcache.store.schema import (
    COMMITS,
    DOCUMENT_LIMIT,
    LEFT_OUT,
    Column,
    Ragged,
    Root,
    RowArray,
    check_name,
)
from actcache.store.storage.atomic import atomic_path
from actcache.store.storage.local import LocalStorage, require_backed
from actcache.store.store import Store
from actcache.store.writing.contents import ColumnValues, StoreContents

KIND = "archive"

LEVEL = 5
"""zstd's level: higher ones save less than a percent on residuals."""

USUAL_SHARD = 64 << 20
"""Bytes that a shard of all arrays, or the whole archive, may unpack to however small it is."""

BEST_RATIO, BEST_SHARD_RATIO = 1000, 200
"""How much larger than its files an archive may be, and what is in memory at a time: a shard of all
arrays. Residuals are packed to a half or so; rows that are all alike much better."""

_HEADER, _MISSING = 16, 2**64 - 1  # bytes of Blosc's header; the place of a chunk that is all zeros


def write_archive(
    store: Store,
    path: Path,
    *,
    on_rows: Callable[[int], None] = lambda _n: None,
) -> None:
    """Pack a finished store; memory holds one shard of one array.

    Open the store with `check=True`, so that damage is found. `on_rows` receives the rows of each
    piece of a row array.
    """
    import zarr

    arrays = store.row_arrays
    encoded = StoreContents(
        kind=store.kind,
        n=store.n,
        arrays=arrays,
        columns=store.columns.with_ragged(),
        config=store.config,
        provenance=store.provenance,
        left_out=store.columns.left_out,
        shard_rows=store.shard_rows,
        shard_reason=store.shard_reason,
    ).encode()
    root = replace(encoded.root, complete=True, certificate=store.certificate)
    files = {n: raw for n, raw in encoded.files.items() if not n.startswith(f"{COMMITS}/")}
    document = root_document(root)
    members = [*encoded.arrays, *encoded.columns]
    packed = {"kind": KIND, "of": root.kind, "digest": store.digest, "members": members}
    document["attributes"] |= packed
    files[ROOT] = encode(document)
    for array in arrays:
        files[f"{array.name}/zarr.json"] = encode(_packed_document(array, root))
    with atomic_path(path, overwrite=False) as temporary:
        for name, raw in files.items():
            (temporary / name).parent.mkdir(parents=True, exist_ok=True)
            (temporary / name).write_bytes(raw)
        group: Any = zarr.open_group(temporary, mode="r+")
        for shard in range(root.n_shards):
            rows = root.rows_of(shard)
            for array in arrays:
                values = store.array(array.name).stored[rows.start : rows.stop]
                group[array.name][rows.start : rows.stop] = values
                on_rows(len(rows))
            store.close()  # what was read once need not stay mapped


def read_archive(path: str | Path, fill: Fill) -> Store:
    """Unpack an archive into the store that it was made from, which `fill` writes."""
    import zarr

    folder = Path(path)
    storage = LocalStorage(folder)
    root, digest, members = _parse_root(_read_document(storage, ROOT), storage.where(ROOT))
    arrays, columns = _read_documents(storage, root, members)
    _require_backed(storage, arrays, root)
    group: Any = zarr.open_group(folder, mode="r")

    def read(array: RowArray, rows: slice) -> Shaped[np.ndarray, "_ layer width"]:
        try:
            return np.asarray(group[array.name][rows], array.stored)
        except (ValueError, RuntimeError) as error:  # a checksum, or what cannot be unpacked
            refuse(str(folder / array.name), f"damage ({error})", "what was packed")

    of_rows = [column for column in columns if column.dimension_names != (LEFT_OUT,)]
    left_out = [column for column in columns if column.dimension_names == (LEFT_OUT,)]
    contents = StoreContents(
        kind=root.kind,
        n=root.n,
        arrays=arrays,
        columns=_values_of(storage, of_rows),
        config=root.config,
        provenance=root.provenance,
        left_out=[
            row
            for name, values in _values_of(storage, left_out).items()
            for row in parse_left_out(np.asarray(values), storage.where(name))
        ],
        shard_rows=root.shard_rows,
        shard_reason=root.shard_reason,
    )
    return fill(contents, read=read, certificate=root.certificate, digest=digest)


def is_archive(path: str | Path) -> bool:
    """Whether a folder declares itself an archive."""
    document = Path(path) / "zarr.json"
    if not document.is_file() or document.stat().st_size > DOCUMENT_LIMIT:
        return False
    attributes = decode(document.read_bytes(), str(document)).get("attributes")
    return type(attributes) is dict and attributes.get("kind") == KIND


def _parse_root(document: Document, where: str) -> tuple[Root, str, list[str]]:
    attributes = document.get("attributes")
    if type(attributes) is not dict or attributes.get("kind") != KIND:
        refuse(where, "another kind of group", "an archive that actcache export wrote")
    of_store = {n: v for n, v in attributes.items() if n not in ("digest", "of", "members")}
    of_store["kind"] = attributes.get("of")
    root = parse_root({**document, "attributes": of_store}, where)
    digest, members = attributes.get("digest"), attributes.get("members")
    if (
        type(digest) is not str
        or type(members) is not list
        or not all(type(name) is str for name in members)
    ):
        refuse(where, "other attributes", "digest and members of the store that was packed")
    return root, digest, members


def _packed_document(array: RowArray, root: Root) -> Document:
    document = row_array_document(array, root)
    inner = document["codecs"][0]["configuration"]
    size = np.dtype(array.stored).itemsize
    blosc = {"typesize": size, "cname": "zstd", "clevel": LEVEL, "shuffle": "bitshuffle"}
    inner["codecs"] += [
        {"name": "blosc", "configuration": {**blosc, "blocksize": 0}},
        {"name": "crc32c"},
    ]
    return document


def _read_document(storage: LocalStorage, name: str) -> Document:
    return decode(storage.read(name, at_most=DOCUMENT_LIMIT), storage.where(name))


def _read_documents(
    storage: LocalStorage, root: Root, members: Sequence[str]
) -> tuple[list[RowArray], list[Column]]:
    """Row arrays and columns; documents other than those written here are refused."""
    arrays, columns = [], []
    for name in members:
        check_name(name)
        where = storage.where(f"{name}/zarr.json")
        document = _read_document(storage, f"{name}/zarr.json")
        if is_row_array(document):
            arrays.append(_parse_packed(name, document, root, where))
        else:
            columns.append(parse_column(name, document, where))
    for group in folders_above([array.name for array in arrays]):
        if _read_document(storage, f"{group}/zarr.json") != GROUP:
            refuse(storage.where(f"{group}/zarr.json"), "another document", "that of a group")
    return arrays, columns


def _parse_packed(name: str, document: Document, root: Root, where: str) -> RowArray:
    try:
        inner = document["codecs"][0]["configuration"]
        packed, inner["codecs"] = inner["codecs"], inner["codecs"][:1]
    except (KeyError, TypeError):
        refuse(where, "another document", "that of a packed row array")
    array = parse_row_array(name, document, root=root, where=where)
    expected = _packed_document(array, root)["codecs"][0]["configuration"]["codecs"]
    if packed != expected:
        refuse(where, "other codecs", "bit shuffle, zstd and crc32c")
    return array


def _require_backed(storage: LocalStorage, arrays: Sequence[RowArray], root: Root) -> None:
    """Refuse shards that are missing, links, or too small for the rows that are declared."""
    declared = sum(shard_bytes(array, root.shard_rows) for array in arrays)
    whole = 0
    for shard in range(root.n_shards):
        size = 0
        for array in arrays:
            name = shard_name(array, shard)
            if not storage.exists(name):
                refuse(storage.where(name), "nothing", "a shard")
            size += storage.size(name)
        whole += size
        if declared > max(USUAL_SHARD, BEST_SHARD_RATIO * size):
            where = storage.where(f"shard {shard}")
            refuse(where, f"{size} bytes", f"what {declared} bytes can be packed into")
        for array in arrays:
            _require_honest(storage, shard_name(array, shard), array, root)
    if root.n_shards * declared > max(USUAL_SHARD, BEST_RATIO * whole):
        declared *= root.n_shards
        refuse(storage.location, f"{whole} bytes", f"what {declared} bytes can be packed into")


def _require_honest(storage: LocalStorage, name: str, array: RowArray, root: Root) -> None:
    """Refuse a shard in which a chunk would be unpacked to more than a block."""
    require_backed(storage.folder / name)
    size, n_bytes = storage.size(name), block_bytes(array, root.shard_rows)
    end = 16 * array.n_layers + 4  # the index, with its checksum
    if size < end:
        refuse(storage.where(name), f"{size} bytes", f"{end} or more")
    places = np.frombuffer(storage.read_range(name, size - end, size - 4), "<u8").reshape(-1, 2)
    for start, length in places.tolist():
        if start == length == _MISSING:
            continue
        if not start + _HEADER <= start + length <= size:
            refuse(storage.where(name), "an index beyond its bytes", "one of its chunks")
        header = storage.read_range(name, start, start + _HEADER)
        if (unpacked := int.from_bytes(header[4:8], "little")) != n_bytes:
            refuse(storage.where(name), f"a chunk of {unpacked} bytes", f"chunks of {n_bytes}")


def _values_of(storage: LocalStorage, columns: list[Column]) -> dict[str, ColumnValues]:
    arrays: dict[str, np.ndarray] = {}
    for column in columns:
        name, raw, size = column_name(column), empty_chunk(column), None
        if column.dtype != "string":
            size = math.prod(column.shape) * np.dtype(column.dtype).itemsize
        if 0 not in column.shape:
            raw = storage.read(name, n_bytes=size)
        arrays[column.name] = read_column(column, raw, storage.where(name))
    values: dict[str, ColumnValues] = {}
    for column in columns:
        name = column.name
        if column.part_of is None:
            values[name] = arrays[name]
        elif column.part_of == name and f"{name}_offsets" in arrays:
            values[name] = Ragged(arrays[name], arrays[f"{name}_offsets"].astype(np.int64))
    return values
