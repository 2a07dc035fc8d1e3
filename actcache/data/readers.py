"""Raw rows of text files and of stdin, each with its place for messages.

Reads `.jsonl` line by line, `.json`, `.csv` and `.tsv`, each also as `.gz`. `tables` reads what has
columns, `sources` chooses between them, and what the keys of a row mean is up to `formats`.
"""

import csv
import gzip
import io
import json
import re
import sys
import zlib
from collections.abc import Callable, Generator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from actcache.errors import RowError

MAX_LINE = 64 << 20
"""Bytes of a line of `.jsonl`. A longer one is no row, and would fill the memory."""

MAX_GROWTH = 200
"""How many times larger than its file a `.gz` may become, beyond `MAX_LINE`. Text grows 3 to 20
times; a file that grows more was made to fill a memory."""

STDIN = "-"
"""The path that stands for stdin."""


@dataclass(frozen=True)
class RawRow:
    """One row as it was read. A null and an empty csv cell are both None: the key is missing."""

    values: dict[str, Any]
    """Key to value, as JSON types."""

    place: str
    """Where it lies, for messages: path, and line (from 1) or row (from 0)."""

    source: str
    """The same in short: file name and number."""


RawRows = Generator[RawRow, None, None]
"""Rows that are read while iterating; closing it closes the file."""


def suffix_of(path: Path) -> str:
    """The suffix that says how a file is read, without `.gz`."""
    name = path.name.lower().removesuffix(".gz")
    return Path(name).suffix


def stem_of(path: Path) -> str:
    """The name of a file without the suffixes that say how it is read."""
    return Path(path.stem).stem if path.suffix.lower() == ".gz" else path.stem


def text_rows(path: Path) -> RawRows:
    """Read a text file, lazily if it is `.jsonl`. Damaged rows are refused while iterating."""
    read = TEXT_FORMATS[suffix_of(path)]
    try:
        with path.open("rb") as file:
            yield from read(_unzipped(file, path), path)
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise RowError(
            f"'{path}' is not a whole gzip file ({first_line(error)}). Compress it again, or drop "
            ".gz from its name if it is not compressed."
        ) from error
    except OSError as error:
        raise RowError(
            f"cannot read '{path}' ({error.strerror}). Check the file and its permissions."
        ) from error


def stdin_rows() -> RawRows:
    """Read JSON from stdin: one object a line, or a list of them."""
    name = Path("stdin")
    file = io.BufferedReader(sys.stdin.buffer)  # type: ignore[type-var]
    try:
        start = file.peek(1).lstrip(b"\xef\xbb\xbf \t\r\n")[:1]
        yield from (_json if start == b"[" else _jsonl)(file, name)
    finally:
        file.detach()  # closing it would close stdin


def _unzipped(file: io.BufferedIOBase, path: Path) -> io.BufferedIOBase:
    if path.suffix.lower() != ".gz":
        return file
    return io.BufferedReader(_Bounded(gzip.GzipFile(fileobj=file), path))


class _Bounded(io.RawIOBase):
    """What a `.gz` holds, until it is too much for its size."""

    def __init__(self, unzipped: Any, path: Path):
        self._unzipped, self._path, self._n_read = unzipped, path, 0
        self._most = max(MAX_GROWTH * path.stat().st_size, MAX_LINE)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        n_read: int = self._unzipped.readinto(buffer)
        self._n_read += n_read
        if self._n_read > self._most:
            raise RowError(
                f"'{self._path}' becomes more than {MAX_GROWTH} times as large when it is "
                "unzipped, expected text. Unzip it yourself, and pass what it holds."
            )
        return n_read


def _jsonl(file: io.BufferedIOBase, path: Path) -> RawRows:
    offset = 0  # bytes split at "\n" only, text at U+2028 and others too
    lines = iter(partial(file.readline, MAX_LINE + 1), b"")
    for number, line in enumerate(lines, start=1):
        place = f"'{path}' line {number}"
        if len(line) > MAX_LINE:
            raise RowError(
                f"{place} is longer than {MAX_LINE >> 20} MB, expected one row a line. Write each "
                "object on a line of its own."
            )
        text = _decoded(line, path, offset)
        offset += len(line)
        if text.strip():
            yield RawRow(_object(_parsed(text, place), place), place, f"{path.name}:{number}")


def _json(file: io.BufferedIOBase, path: Path) -> RawRows:
    text = _decoded(file.read(), path, 0)
    if not text.strip():
        return
    rows = _parsed(text, f"'{path}'")
    if not isinstance(rows, list):
        raise RowError(
            f"'{path}' holds {json_type(rows)}, expected a list of objects. "
            "Put the rows in [ ], or name a file with one object per line .jsonl."
        )
    for number, row in enumerate(rows):
        place = f"'{path}' row {number} (from 0)"
        yield RawRow(_object(row, place), place, f"{path.name}:{number}")


def _csv(file: io.BufferedIOBase, path: Path, *, delimiter: str = ",") -> RawRows:
    text = _decoded(file.read(), path, 0)
    rows = csv.reader(io.StringIO(text, newline=""), strict=True, delimiter=delimiter)
    separator = "tab" if delimiter == "\t" else "comma"
    header: list[str] | None = None
    end = 0  # a row may span several lines: messages name its first
    try:
        for cells in rows:
            start, end = end + 1, rows.line_num
            place = f"'{path}' line {start}"
            if not cells:
                continue  # a blank line
            if header is None:
                header = _header(cells, place)
                continue
            if len(cells) != len(header):
                raise RowError(
                    f"{place} has {len(cells)} cells, the header {len(header)}. "
                    f"Quote cells that hold a {separator} or a line break."
                )
            values = {key: cell or None for key, cell in zip(header, cells, strict=True)}
            yield RawRow(values, place, f"{path.name}:{start}")
    except csv.Error as error:
        raise RowError(
            f"'{path}' line {end + 1}: not {'TSV' if delimiter == chr(9) else 'CSV'} ({error}). "
            "Quote the cell and double the quotes in it, or write .jsonl."
        ) from error


TEXT_FORMATS: dict[str, Callable[[io.BufferedIOBase, Path], RawRows]] = {
    ".jsonl": _jsonl,
    ".json": _json,
    ".csv": _csv,
    ".tsv": partial(_csv, delimiter="\t"),
}
"""The readers of text files by suffix."""


def _header(cells: list[str], place: str) -> list[str]:
    header = [cell.strip() for cell in cells]
    for key in header:
        if header.count(key) > 1 or not key:
            problem = f"'{key}' {header.count(key)} times" if key else "a column without a name"
            raise RowError(f"{place}: the header has {problem}. Give each column its own name.")
    return header


def _decoded(data: bytes, path: Path, offset: int) -> str:
    try:
        return data.decode("utf-8-sig" if offset == 0 else "utf-8")
    except UnicodeDecodeError as error:
        bom = 3 if offset == 0 and data.startswith(b"\xef\xbb\xbf") else 0
        raise RowError(
            f"'{path}' is not UTF-8 at byte {offset + bom + error.start} "
            f"({error.object[error.start]:#04x}). Save it as UTF-8."
        ) from error


def _parsed(text: str, place: str) -> Any:
    try:
        return json.loads(text, object_pairs_hook=_without_repeats)
    except json.JSONDecodeError as error:
        line = f" line {error.lineno}," if not re.search(r"line \d+$", place) else ","
        raise RowError(
            f"{place}{line} column {error.colno}: not JSON ({error.msg}). Correct the line"
            + (", or name a file with one object per line .jsonl." if line != "," else ".")
        ) from error
    except (RecursionError, ValueError) as error:  # nested too deep; a key twice; a huge number
        raise RowError(f"{place}: not usable JSON ({first_line(error)}). Correct it.") from error


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) < len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"the key {next(k for k in keys if keys.count(k) > 1)!r} appears twice")
    return result


def _object(row: Any, place: str) -> dict[str, Any]:
    if not isinstance(row, dict):
        raise RowError(f"{place} is {json_type(row)}, expected an object. Write one as {{…}}.")
    return row


def json_type(value: object) -> str:
    """Name the type of a JSON value, for a message."""
    names = {
        dict: "an object",
        list: "a list",
        str: "text",
        bool: "true or false",
        type(None): "null",
    }
    return names.get(type(value), "a number" if isinstance(value, int | float) else "no JSON value")


def first_line(error: BaseException) -> str:
    """The first line of another package's error."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]
