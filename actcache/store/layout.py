"""The contents of a storage: its documents checked against the format, its log followed to the end.

The one way into a store, for reading and for resuming. Looks at names, sizes, documents and
records; the values of columns and shards are read elsewhere.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

from actcache.errors import (
    DamageError,
    FormatError,
    IncompleteStoreError,
    MismatchError,
    StoreNotFoundError,
    refuse,
)
from actcache.store.documents import (
    GROUP,
    decode,
    is_row_array,
    parse_column,
    parse_commits,
    parse_root,
    parse_row_array,
)
from actcache.store.encoding import shard_bytes
from actcache.store.log import ROOT as ROOT
from actcache.store.log import Checksums, FileSum, follow_log, parse_files, read_record
from actcache.store.log import record_name as record_name
from actcache.store.schema import COMMITS, DOCUMENT_LIMIT, Column, Root, RowArray, check_name
from actcache.store.storage.address import bucket_address, storage_at
from actcache.store.storage.local import LocalStorage
from actcache.store.storage.protocol import Storage, require_size

PARTIAL = ".partial"
"""Ends the name of a local store's folder until it is finished."""

T = TypeVar("T")

LOG = f"{COMMITS}/zarr.json"


@dataclass(frozen=True)
class Layout:
    """A store, as far as it can be trusted."""

    storage: Storage
    root: Root
    arrays: Mapping[str, RowArray]
    columns: Mapping[str, Column]
    files: Mapping[str, FileSum]
    """Everything that was written at creation, by its name in the storage."""

    record_bytes: int
    checksums: Sequence[Checksums]
    """Checksums of each committed shard."""

    first_record: str
    """sha256 of record 0, which no other store has."""

    last_record: str
    """sha256 of the last shard's record, or of record 0."""

    sealed: bool
    """Whether the log ends with a seal."""

    complete: bool
    """Whether the group's document is the one that the seal vouches for: the store is finished."""

    @property
    def committed(self) -> int:
        """Rows that count."""
        return min(len(self.checksums) * self.root.shard_rows, self.root.n)


def partial_folder(path: Path) -> Path:
    """Where a local store is written until it is finished."""
    return path.with_name(path.name + PARTIAL)


def shard_name(array: RowArray, shard: int) -> str:
    """The file of one shard."""
    return f"{array.name}/c.{shard}.0.0"


def column_name(column: Column) -> str:
    """The file of a column's values."""
    return f"{column.name}/c" + ".0" * len(column.shape)


def folders_above(names: Iterable[str]) -> set[str]:
    """Every folder on the way to these names."""
    return {name[:end] for name in names for end, character in enumerate(name) if character == "/"}


def open_layout(
    path: str | Path | Storage,
    *,
    partial: bool = False,
    tolerate: Callable[[DamageError], None] | None = None,
) -> Layout:
    """Find and read a finished store; with `partial` rather an interrupted one, if there is one.

    `tolerate` receives each damage that leaves the rest readable, instead of raising it. A store
    may just be getting its name, so what cannot be read is looked for once more.
    """
    try:
        layout, damages = _open_layout(path, partial=partial, tolerant=tolerate is not None)
        # A log that seems to end early may be that of a folder that has just been renamed.
        suspect = bool(damages) or not layout.complete
        again = suspect and not _is_in_place(layout.storage, layout)
    except (FormatError, IncompleteStoreError, StoreNotFoundError):
        again = True
    if again:
        layout, damages = _open_layout(path, partial=partial, tolerant=tolerate is not None)
    if tolerate is not None:
        for damage in damages:
            tolerate(damage)
    return layout


def _open_layout(
    path: str | Path | Storage, *, partial: bool, tolerant: bool
) -> tuple[Layout, list[DamageError]]:
    damages: list[DamageError] = []
    storage = _find_storage(path, partial=partial)
    layout = read_layout(storage, tolerate=damages.append if tolerant else None)
    if not (layout.complete or partial):
        raise _incomplete(layout.storage, f"{layout.committed} of {layout.root.n} rows")
    return layout, damages


def read_in_place(layout: Layout, read: Callable[[], T]) -> T:
    """Read from the files of an open store, of no other that has taken its place since.

    A store that was finished since is followed to its new name.

    Raises:
        MismatchError: the store was replaced, moved or removed.
    """
    for _ in range(2):
        try:
            result = read()
        except DamageError:
            if _is_in_place(layout.storage, layout):
                raise
        else:  # looked at afterwards, so that there is no gap
            if _is_in_place(layout.storage, layout):
                return result
        if not _follow(layout):
            break
    raise MismatchError(
        f"'{layout.storage.location}' is not the store that was opened, expected it unchanged: it "
        "was replaced, moved or removed meanwhile. Open it again."
    )


def _is_in_place(storage: Storage, layout: Layout) -> bool:
    """Whether the last record that counted is there: it chains to all that the store holds."""
    try:
        raw = storage.read(record_name(len(layout.checksums)), at_most=DOCUMENT_LIMIT)
    except (DamageError, NotADirectoryError):
        return False
    return raw.rstrip().endswith(f'"sha256":"{layout.last_record}"}}'.encode())


def _follow(layout: Layout) -> bool:
    """Find an interrupted store under the name that it got when it was finished."""
    storage = layout.storage
    if isinstance(storage, LocalStorage) and storage.folder.name.endswith(PARTIAL):
        finished = storage.folder.with_name(storage.folder.name.removesuffix(PARTIAL))
        if _is_in_place(LocalStorage(finished), layout):
            storage.folder = finished
            return True
    return False


def _find_storage(path: str | Path | Storage, *, partial: bool) -> Storage:
    if not isinstance(path, str | Path):
        return path
    if bucket_address(path) is not None:
        storage = storage_at(path)
        if not storage.exists(ROOT):
            raise _no_store(storage.location)
        return storage
    path = Path(path)
    interrupted = LocalStorage(path if path.name.endswith(PARTIAL) else partial_folder(path))
    begun = interrupted.exists(record_name(0))
    if path != interrupted.folder and path.exists() and not (partial and begun):
        return LocalStorage(path)
    if not interrupted.folder.is_dir():
        raise _no_store(path)
    if not begun:
        raise _incomplete(interrupted, "nothing yet")
    if not partial and path != interrupted.folder:
        layout = read_layout(interrupted)
        raise _incomplete(interrupted, f"{layout.committed} of {layout.root.n} rows")
    return interrupted


def _no_store(path: str | Path) -> StoreNotFoundError:
    return StoreNotFoundError(
        f"no store at '{path}'. Build one with: actcache build DATA --model MODEL -o {path}"
    )


def _incomplete(storage: Storage, content: str) -> IncompleteStoreError:
    return IncompleteStoreError(
        f"'{storage.location}' holds {content}, expected a finished store: it is being written, or "
        "that was interrupted. Continue with --resume, or open it with partial=True."
    )


def read_layout(
    storage: Storage, *, tolerate: Callable[[DamageError], None] | None = None
) -> Layout:
    """Read all documents and records of a storage, and look at the size of every file.

    A log that ends early is damage only in a store that says that it is finished. `tolerate`
    receives each data file that is missing or of a wrong size, instead of raising it.
    """
    if not storage.exists(ROOT):
        raise FormatError(
            f"'{storage.location}' is no folder with a zarr.json, expected a store. Give the "
            "folder that actcache build wrote."
        )
    root_raw = storage.read(ROOT, at_most=DOCUMENT_LIMIT)
    root = parse_root(decode(root_raw, storage.where(ROOT)), storage.where(ROOT))
    if not root.complete and not storage.exists(record_name(0)):
        raise _incomplete(storage, "nothing yet")
    log_raw = storage.read(LOG, at_most=DOCUMENT_LIMIT)
    where = storage.where(LOG)
    record_bytes = parse_commits(decode(log_raw, where), n_records=root.n_shards + 2, where=where)
    first = read_record(storage, 0, record_bytes)
    files = parse_files(first, storage.where(record_name(0)))
    if first.content.keys() != {"files"}:
        refuse(storage.where(record_name(0)), "another record", "that of a creation")
    if files.get(LOG) != FileSum.of(log_raw):
        refuse(where, "other bytes", "those of its creation")
    listed = storage.sizes()  # once: in a bucket each object that is asked for costs a round trip
    arrays, columns = _read_documents(storage, root, files, listed)
    n_checksums = sum(array.n_layers for array in arrays.values())
    if len('"00000000",') * n_checksums > record_bytes:
        refuse(where, f"records of {record_bytes} bytes", f"room for {n_checksums} checksums each")
    checksums, last, seal = follow_log(
        storage, root, list(arrays.values()), first, record_bytes=record_bytes, listed=listed
    )
    sizes = {
        name: files[name].n_bytes
        for name in map(column_name, columns.values())
        if name in files  # an empty column has no file
    }
    for array in arrays.values():
        n_bytes = shard_bytes(array, root.shard_rows)
        sizes |= {shard_name(array, shard): n_bytes for shard in range(len(checksums))}
    for name, n_bytes in sizes.items():
        if listed.get(name) == n_bytes:
            continue
        try:  # what is not listed may be there since, or says what is wrong with it
            require_size(storage, name, n_bytes)
        except DamageError as damage:
            if tolerate is None:
                raise
            tolerate(damage)
    # The seal is written before the document that it vouches for. Between the two the document is
    # still that of the creation, and the store is not finished.
    complete = FileSum.of(root_raw) == seal
    if complete != root.complete or not (complete or FileSum.of(root_raw) == files.get(ROOT)):
        refuse(storage.where(ROOT), "other bytes", "those that its log vouches for")
    return Layout(
        storage=storage,
        root=root,
        arrays=arrays,
        columns=columns,
        files=files,
        record_bytes=record_bytes,
        checksums=checksums,
        first_record=first.sha256,
        last_record=last,
        sealed=seal is not None,
        complete=complete,
    )


def _read_documents(
    storage: Storage, root: Root, files: Mapping[str, FileSum], listed: Mapping[str, int]
) -> tuple[dict[str, RowArray], dict[str, Column]]:
    arrays: dict[str, RowArray] = {}
    columns: dict[str, Column] = {}
    groups: set[str] = set()
    record = storage.where(record_name(0))
    paths = [x for x in files if x.endswith("/zarr.json") and x not in (LOG, f"/{ROOT}")]
    whole = {
        path: (path, 0, listed[path])
        for path in paths
        if listed.get(path) == files[path].n_bytes <= DOCUMENT_LIMIT
    }
    ahead = storage.read_ranges(list(whole.values()))
    parsed: dict[bytes, Column] = {}  # columns of one type and shape have equal documents
    for path in paths:
        name = path.removesuffix("/zarr.json")
        try:
            check_name(name)  # it came from a file
        except FormatError:
            refuse(record, f"the name {name!r}", "names that are safe")
        raw = (
            bytes(next(ahead))
            if path in whole
            else storage.read(path, n_bytes=files[path].n_bytes, at_most=DOCUMENT_LIMIT)
        )
        if FileSum.of(raw) != files[path]:
            refuse(storage.where(path), "other bytes", "those of its creation")
        if raw in parsed:
            columns[name] = replace(parsed[raw], name=name)
            continue
        document = decode(raw, storage.where(path))
        if document == GROUP:
            groups.add(name)
        elif is_row_array(document):
            arrays[name] = parse_row_array(name, document, root=root, where=storage.where(path))
        else:
            columns[name] = parsed[raw] = parse_column(name, document, storage.where(path))
    expected = {ROOT, LOG, *(f"{name}/zarr.json" for name in (*arrays, *columns, *groups))}
    expected |= {column_name(column) for column in columns.values() if 0 not in column.shape}
    if (
        not arrays
        or groups != folders_above(list(arrays))
        or set(files) != expected
        or any("/" in name for name in columns)
    ):
        refuse(record, "another list of files", "that of a store")
    _require_whole(storage, root, columns, files)
    return arrays, columns


def _require_whole(
    storage: Storage, root: Root, columns: Mapping[str, Column], files: Mapping[str, FileSum]
) -> None:
    """Columns have the lengths that their files, dimensions and other half ask for."""
    for name, column in columns.items():
        where = storage.where(f"{name}/zarr.json")
        n_bytes = files[column_name(column)].n_bytes if 0 not in column.shape else 0
        if not column.fits(n_bytes):
            refuse(where, f"the shape {list(column.shape)}", f"one that {n_bytes} bytes hold")
        if column.dimension_names[0] == "n" and column.shape[0] != root.n:
            refuse(where, f"{column.shape[0]} rows", f"{root.n}")
        if column.part_of is None:
            continue
        flat, offsets = columns.get(column.part_of), columns.get(f"{column.part_of}_offsets")
        if (
            flat is None
            or offsets is None
            or name not in (flat.name, offsets.name)
            or flat.part_of != offsets.part_of
            or len(flat.shape) != 1
            or not flat.dtype.startswith(("int", "uint"))
            or (offsets.dtype, offsets.shape) != ("int64", (root.n + 1,))
        ):
            refuse(where, "one half of a ragged column", "both, of one store")
