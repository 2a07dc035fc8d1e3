"""What a folder holds: its documents checked against the format, its log followed to the end.

The one way into a store, for reading and for resuming. Looks at names, sizes, documents and
records; the values of columns and shards are for others to read.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from actcache.errors import (
    DamageError,
    FormatError,
    IncompleteStoreError,
    StoreNotFoundError,
    refuse,
)
from actcache.store.documents import (
    GROUP,
    Document,
    decode,
    is_row_array,
    parse_column,
    parse_commits,
    parse_root,
    parse_row_array,
)
from actcache.store.encoding import shard_bytes
from actcache.store.log import (
    Checksums,
    FileSum,
    Record,
    decode_record,
    parse_files,
    parse_shard,
)
from actcache.store.schema import COMMITS, DOCUMENT_LIMIT, Column, Root, RowArray, check_name
from actcache.store.storage.files import read_file, require_file, require_folder

PARTIAL = ".partial"
"""Ends the name of a store's folder until it is complete."""


@dataclass(frozen=True)
class Layout:
    """A store's folder, as far as it can be trusted."""

    folder: Path
    root: Root
    arrays: Mapping[str, RowArray]
    columns: Mapping[str, Column]
    files: Mapping[str, FileSum]
    """Everything that was written at creation, by its path in the folder."""

    record_bytes: int
    checksums: Sequence[Checksums]
    """Of each committed shard."""

    last_record: str
    """sha256 of the last shard's record, or of record 0."""

    sealed: bool
    """Whether the log ends with the seal of a complete store."""

    @property
    def committed(self) -> int:
        """Rows that count."""
        return min(len(self.checksums) * self.root.shard_rows, self.root.n)


def partial_folder(path: Path) -> Path:
    """Where a store lies until it is complete."""
    return path.with_name(path.name + PARTIAL)


def record_path(folder: Path, number: int) -> Path:
    """The file of one record."""
    return folder / COMMITS / f"c.{number}.0"


def shard_path(folder: Path, array: RowArray, shard: int) -> Path:
    """The file of one shard."""
    return folder / array.name / f"c.{shard}.0.0"


def column_path(column: Column) -> str:
    """The file of a column's values, inside the store's folder."""
    return f"{column.name}/c" + ".0" * len(column.shape)


def folders_above(names: Sequence[str]) -> set[str]:
    """The groups between the store and its row arrays."""
    return {name[:at] for name in names for at, character in enumerate(name) if character == "/"}


def find_store(path: str | Path, *, partial: bool) -> Path:
    """The folder of a store: a finished one, or with `partial` first an interrupted one.

    Raises:
        StoreNotFoundError: there is none.
        IncompleteStoreError: there is only an interrupted one, and it was not asked for.
    """
    path = Path(path)
    interrupted = path if path.name.endswith(PARTIAL) else partial_folder(path)
    begun = record_path(interrupted, 0).exists()
    if partial and begun:
        return interrupted
    if path.exists() and path != interrupted:
        return path
    if not interrupted.is_dir():
        raise StoreNotFoundError(
            f"no store at '{path}'. Build one with: actcache build DATA --model MODEL -o {path}"
        )
    held = "nothing yet"
    if begun:
        layout = read_layout(interrupted)
        held = f"{layout.committed} of {layout.root.n} rows"
    raise IncompleteStoreError(
        f"'{interrupted}' holds {held}, expected a finished store: it is being written, or that "
        "was interrupted. Continue with --resume, or open it with partial=True."
    )


def read_layout(folder: Path, *, tolerate: Callable[[DamageError], None] | None = None) -> Layout:
    """Read all documents and records of a folder, and look at the size of every file.

    Args:
        folder: from `find_store`.
        tolerate: told of each data file that is missing or of a wrong size, instead of raising.

    Raises:
        FormatError: anything is not as format 1 has it. A log that ends early is an error only in
            a finished store.
    """
    if not (folder / "zarr.json").exists():
        raise FormatError(
            f"'{folder}' is no folder with a zarr.json, expected a store. Give the folder that "
            "actcache build wrote."
        )
    root_raw = read_file(folder / "zarr.json", at_most=DOCUMENT_LIMIT)
    root = parse_root(decode(root_raw, str(folder / "zarr.json")), str(folder / "zarr.json"))
    log = require_folder(folder, COMMITS) / "zarr.json"
    log_raw = read_file(log, at_most=DOCUMENT_LIMIT)
    record_bytes = parse_commits(
        decode(log_raw, str(log)), n_records=root.n_shards + 2, where=str(log)
    )
    first = _read_record(folder, 0, record_bytes)
    where = str(record_path(folder, 0))
    files = parse_files(first, where)
    if first.content.keys() != {"files"}:
        refuse(where, "another record", "that of a creation")
    if files.get(f"{COMMITS}/zarr.json") != FileSum.of(log_raw):
        refuse(str(log), "other bytes", "those of its creation")
    arrays, columns = _read_documents(folder, root, files)
    paths = [column_path(each) for each in columns.values() if 0 not in each.shape]
    sizes = {folder / path: files[path].n_bytes for path in paths}
    checksums, last, sealed = _follow_log(folder, root, list(arrays.values()), first, record_bytes)
    for array in arrays.values():
        for number in range(len(checksums)):
            sizes[shard_path(folder, array, number)] = shard_bytes(array, root.shard_rows)
    for path, n_bytes in sizes.items():
        try:
            require_file(path, n_bytes)
        except DamageError as damage:
            if tolerate is None:
                raise
            tolerate(damage)
    # The seal is written before the document, so either may be what it vouches for.
    vouched = [files.get("zarr.json"), sealed if root.complete else None]
    if FileSum.of(root_raw) not in vouched or (root.complete and sealed is None):
        refuse(str(folder / "zarr.json"), "other bytes", "those that its log vouches for")
    return Layout(folder, root, arrays, columns, files, record_bytes, checksums, last, bool(sealed))


def _read_documents(
    folder: Path, root: Root, files: Mapping[str, FileSum]
) -> tuple[dict[str, RowArray], dict[str, Column]]:
    arrays: dict[str, RowArray] = {}
    columns: dict[str, Column] = {}
    groups: set[str] = set()
    for path in files:
        name, _, last = path.rpartition("/")
        if last != "zarr.json" or name in ("", COMMITS):
            continue
        try:
            check_name(name)  # it came from a file
        except FormatError:
            refuse(str(record_path(folder, 0)), f"the name {name!r}", "names that are safe")
        where = str(folder / path)
        document = _read_document(folder, name, files[path])
        if document == GROUP:
            groups.add(name)
        elif is_row_array(document):
            arrays[name] = parse_row_array(name, document, root=root, where=where)
        else:
            columns[name] = parse_column(name, document, where)
    _require_whole(folder, root, columns)
    expected = {"zarr.json", f"{COMMITS}/zarr.json"}
    expected |= {f"{name}/zarr.json" for name in (*arrays, *columns, *groups)}
    for column in columns.values():
        if 0 not in column.shape:
            expected.add(column_path(column))
    if (
        not arrays
        or groups != folders_above(list(arrays))
        or set(files) != expected
        or any("/" in name for name in columns)
    ):
        refuse(str(record_path(folder, 0)), "another list of files", "that of a store")
    return arrays, columns


def _read_document(folder: Path, name: str, expected: FileSum) -> Document:
    """A document that is unchanged since the store was created."""
    path = require_folder(folder, name) / "zarr.json"
    raw = read_file(path, n_bytes=expected.n_bytes, at_most=DOCUMENT_LIMIT)
    if FileSum.of(raw) != expected:
        refuse(str(path), "other bytes", "those of its creation")
    return decode(raw, str(path))


def _require_whole(folder: Path, root: Root, columns: Mapping[str, Column]) -> None:
    """Columns have the lengths that their dimensions and their other half ask for."""
    for name, column in columns.items():
        where = str(folder / name / "zarr.json")
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


def _read_record(folder: Path, number: int, record_bytes: int) -> Record:
    path = record_path(folder, number)
    return decode_record(read_file(path, n_bytes=record_bytes), number=number, where=str(path))


def _follow_log(
    folder: Path, root: Root, arrays: Sequence[RowArray], first: Record, record_bytes: int
) -> tuple[list[Checksums], str, FileSum | None]:
    """Follow the chain as far as it holds: shards, the last sha256, what the seal vouches for."""
    for array in arrays:
        require_folder(folder, array.name)
    checksums: list[Checksums] = []
    last = first.sha256
    for number in range(root.n_shards):
        where = str(record_path(folder, number + 1))
        try:
            record = _read_record(folder, number + 1, record_bytes)
            if record.previous != last:
                break
            found = parse_shard(record, root=root, arrays=arrays, number=number, where=where)
        except FormatError:
            if root.complete:
                raise
            break  # the log of an interrupted build ends here
        checksums.append(found)
        last = record.sha256
    if len(checksums) < root.n_shards:
        if root.complete:
            where = str(record_path(folder, len(checksums) + 1))
            refuse(where, "a record of another store", "one that chains to the record before it")
        return checksums, last, None
    number = root.n_shards + 1
    if not root.complete and not record_path(folder, number).exists():
        return checksums, last, None
    where = str(record_path(folder, number))
    record = _read_record(folder, number, record_bytes)
    files = parse_files(record, where)
    if (
        record.previous != last
        or files.keys() != {"zarr.json"}
        or record.content.keys() != {"files"}
    ):
        refuse(where, "another record", "the seal of this store")
    return checksums, last, files["zarr.json"]
