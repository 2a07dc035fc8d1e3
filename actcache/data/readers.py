"""Raw rows of a file, folder or Hub id, each with its place for messages.

Reads `.jsonl` line by line, `.json`, `.csv`, and data sets of the `datasets` package. What the keys
of a row mean is up to `formats`.
"""

import csv
import importlib
import io
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from actcache.errors import RowError
from actcache.hub import first_sentence, prepare_hub

_READ = "Pass a .jsonl, .json or .csv file, a folder made by save_to_disk, or a Hub id."
_HUB_ID = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?(:[\w.-]+)?", re.ASCII)
_FILE_LIKE = (".jsonl", ".json", ".csv", ".tsv", ".txt", ".parquet", ".arrow", ".gz", ".zip")


@dataclass(frozen=True)
class RawRow:
    """One row as it was read. A null and an empty csv cell are both None: the key is missing."""

    values: dict[str, Any]
    """Key to value, as JSON types."""

    place: str
    """Where it lies, for messages: path, and line (from 1) or row (from 0)."""

    source: str
    """The same in short: file name and number."""


def expand_globs(paths: Sequence[str | Path]) -> list[str | Path]:
    """Replace each glob by the files that match it, sorted; `**` also matches folders."""
    expanded: list[str | Path] = []
    for path in paths:
        if not set("*?[") & set(str(path)) or Path(path).exists():
            expanded.append(path)
            continue
        root = Path(path).anchor
        matches = sorted(Path(root).glob(str(Path(path).relative_to(root))))
        if not matches:
            raise RowError(f"no file matches '{path}'. {_READ}")
        expanded += matches
    return expanded


def raw_rows(path: str | Path) -> tuple[str, Iterator[RawRow]]:
    """Open a data source: the behavior it is named after, and its rows, read lazily.

    The path is that of a `.jsonl`, `.json` or `.csv` file in UTF-8, with or without BOM; of a
    folder that `datasets.save_to_disk` made; or, where nothing lies there, a Hub id. The last two
    may end in `:split`, else `train` is read. Damaged rows are refused while iterating.
    """
    text = str(path)
    place = Path(text)
    if not text:
        raise RowError(f"the path of the data is empty. {_READ}")
    if place.is_dir():
        return place.resolve().name, _folder(place, split=None)
    if place.exists():
        return place.stem, _file(place)
    before, colon, split = text.rpartition(":")
    if colon and before and Path(before).is_dir():
        return Path(before).resolve().name, _folder(Path(before), split=split)
    if not _HUB_ID.fullmatch(text) or place.suffix.lower() in _FILE_LIKE:
        raise RowError(f"no file at '{text}'. {_READ}")
    name = before if colon else text
    return name.rpartition("/")[2], _hub(name, split=split if colon else "train")


def _file(path: Path) -> Iterator[RawRow]:
    readers = {".jsonl": _jsonl, ".json": _json, ".csv": _csv}
    reader = readers.get(path.suffix.lower())
    if reader is None:
        raise RowError(
            f"'{path}' ends in '{path.suffix}', expected .jsonl, .json or .csv. "
            "Convert the file, or rename it after what it holds."
        )
    try:
        yield from reader(path)
    except OSError as error:
        raise RowError(
            f"cannot read '{path}' ({error.strerror}). Check the file and its permissions."
        ) from error


def _jsonl(path: Path) -> Iterator[RawRow]:
    offset = 0
    with path.open("rb") as lines:  # bytes split at "\n" only, text at U+2028 and others too
        for number, line in enumerate(lines, start=1):
            place = f"'{path}' line {number}"
            text = _decoded(line, path, offset)
            offset += len(line)
            if text.strip():
                yield RawRow(_object(_parsed(text, place), place), place, f"{path.name}:{number}")


def _json(path: Path) -> Iterator[RawRow]:
    text = _decoded(path.read_bytes(), path, 0)
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


def _csv(path: Path) -> Iterator[RawRow]:
    text = _decoded(path.read_bytes(), path, 0)
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    header: list[str] | None = None
    end = 0  # a row may span several lines: messages name its first
    try:
        for cells in reader:
            start, end = end + 1, reader.line_num
            place = f"'{path}' line {start}"
            if not cells:
                continue  # a blank line
            if header is None:
                header = _header(cells, place)
                continue
            if len(cells) != len(header):
                raise RowError(
                    f"{place} has {len(cells)} cells, the header {len(header)}. "
                    "Quote cells that hold a comma or a line break."
                )
            values = {key: cell or None for key, cell in zip(header, cells, strict=True)}
            yield RawRow(values, place, f"{path.name}:{start}")
    except csv.Error as error:
        raise RowError(
            f"'{path}' line {end + 1}: not CSV ({error}). Quote the cell and double the quotes "
            "in it, or write .jsonl."
        ) from error


def _header(cells: list[str], place: str) -> list[str]:
    header = [cell.strip() for cell in cells]
    for key in header:
        if header.count(key) > 1 or not key:
            problem = f"'{key}' {header.count(key)} times" if key else "a column without a name"
            raise RowError(f"{place}: the header has {problem}. Give each column its own name.")
    return header


def _folder(path: Path, *, split: str | None) -> Iterator[RawRow]:
    if not any((path / name).is_file() for name in ("state.json", "dataset_dict.json")):
        raise RowError(
            f"'{path}' is a folder, but not a data set (it has no state.json or dataset_dict.json)."
            " Pass the files in it, or a folder made by save_to_disk."
        )
    datasets = _datasets(f"'{path}'")
    try:
        dataset = datasets.load_from_disk(str(path))
    except Exception as error:  # whatever the package raises is about the folder
        raise RowError(
            f"'{path}' cannot be read as a data set ({_first_line(error)}). Save it again."
        ) from error
    if isinstance(dataset, datasets.DatasetDict):
        name = split or "train"
        if name not in dataset:
            names = ", ".join(dataset) or "none"
            raise RowError(
                f"'{path}' has no split '{name}', only {names}. "
                f"Pass '{path}:SPLIT' with one of them."
            )
        dataset = dataset[name]
    elif split is not None:
        raise RowError(f"'{path}' is one data set without splits. Drop ':{split}'.")
    return _dataset(dataset, f"'{path}'", path.resolve().name)


def _hub(name: str, *, split: str) -> Iterator[RawRow]:
    datasets = _datasets(f"'{name}'")
    prepare_hub(name)
    try:
        dataset = datasets.load_dataset(name, split=split)
    except Exception as error:  # no network, no such data set, no such split, no permission, …
        raise RowError(
            f"no file at '{name}', and no data set of that name on the Hub with a split "
            f"'{split}' ({first_sentence(error).rstrip('.')}). Check path, name and network, or "
            "pass a local file."
        ) from error
    return _dataset(dataset, f"'{name}'", name.rpartition("/")[2])


def _datasets(name: str) -> Any:
    try:  # imported here: it is slow to import, and rarely needed
        return importlib.import_module("datasets")
    except ImportError:
        raise RowError(
            f"{name} needs the package 'datasets', which is not installed. "
            "Install it with: pip install datasets, or pass a .jsonl file."
        ) from None


def _dataset(dataset: Any, name: str, short: str) -> Iterator[RawRow]:
    classes = {
        key: feature.names
        for key, feature in dataset.features.items()
        if type(feature).__name__ == "ClassLabel"
    }
    for number, row in enumerate(dataset):
        values = dict(row)
        for key, names in classes.items():  # stored as numbers, but the names are what is meant
            value = values[key]
            values[key] = names[value] if value is not None and value >= 0 else None
        yield RawRow(values, f"{name} row {number} (from 0)", f"{short}:{number}")


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
        raise RowError(f"{place}: not usable JSON ({_first_line(error)}). Correct it.") from error


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


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
