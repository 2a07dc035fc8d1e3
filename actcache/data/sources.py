"""What rows can be read from: paths, Hub ids, and lists, tables and data sets in memory."""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from actcache.data.readers import (
    STDIN,
    TEXT_FORMATS,
    RawRows,
    stdin_rows,
    stem_of,
    suffix_of,
    text_rows,
)
from actcache.data.tables import (
    Note,
    choose_split,
    dataset_rows,
    folder_rows,
    frame_rows,
    hub_rows,
    listed_rows,
    parquet_rows,
)
from actcache.errors import RowError

Data = Any
"""What rows are read from, see `read_samples`. A path, a list of paths, a list of rows, a pandas
DataFrame, a `datasets.Dataset` or `DatasetDict`; or a mapping of names to these."""

UNNAMED = "rows"
"""The behavior of rows in memory to which nobody gave a name."""

_PASS = (
    "Pass a .jsonl, .json, .csv, .tsv or .parquet file, - for stdin, a folder made by "
    "save_to_disk, or a Hub id."
)
_HUB_ID = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?(:[\w.-]+)?", re.ASCII)
_FILE_LIKE = (*TEXT_FORMATS, ".txt", ".parquet", ".arrow", ".gz", ".zip")


@dataclass(frozen=True)
class RowSource:
    """Rows of one behavior, unless they say otherwise."""

    behavior: str
    """The name that they have where a row says none."""

    place: str
    """What messages call it."""

    rows: RawRows
    """Read while iterating; a damaged one is refused then."""

    has_splits: bool = False
    """Whether `--split` chooses in it."""


def open_sources(data: Data, *, split: str | None, note: Note) -> list[RowSource]:
    """Open whatever rows can be read from; files are read later, while iterating.

    Args:
        data: see `read_samples`.
        split: which split of data sets that have several.
        note: called with each sentence about what is ignored.

    Raises:
        RowError: there is nothing to read there; says what can be passed.
    """
    sources = list(_sources(data, None, split, note))
    if not sources:
        raise RowError(f"no data given, expected at least one file. {_PASS}")
    if split is not None and not any(source.has_splits for source in sources):
        note(f"--split {split} is ignored: no data has splits to choose from")
    return sources


def _sources(data: Data, name: str | None, split: str | None, note: Note) -> Iterator[RowSource]:
    short = name or UNNAMED
    place = f"'{short}'"
    if isinstance(data, str | Path):
        for path in expand_globs([data]):
            source = open_path(path, split=split, note=note)
            yield RowSource(name or source.behavior, source.place, source.rows, source.has_splits)
    elif _is_from(data, "datasets"):
        has_splits = isinstance(data, Mapping)
        dataset = choose_split(data, place, split, note) if has_splits else data
        yield RowSource(short, place, dataset_rows(dataset, place, short), has_splits)
    elif _is_from(data, "pandas") and hasattr(data, "columns"):
        yield RowSource(short, place, frame_rows(data, place, short))
    elif isinstance(data, Mapping) and name is None:
        for key, part in data.items():
            if isinstance(part, Mapping) and not _is_from(part, "datasets"):
                raise _unfit(part, f"under '{key}' ")
            yield from _sources(part, str(key), split, note)
    elif isinstance(data, Iterable) and not isinstance(data, Mapping | bytes):
        items = list(data)
        if any(isinstance(item, Mapping) for item in items) or (name and _are_texts(items)):
            yield RowSource(short, place, listed_rows(items, place, short))
            return
        for item in items:
            if isinstance(item, Sequence) and not isinstance(item, str):
                raise _unfit(item, "")
            yield from _sources(item, name, split, note)
    else:
        raise _unfit(data, "")


def _are_texts(items: Sequence[Any]) -> bool:
    """Whether these are prompts. Paths in a list under a name are given as `Path`."""
    return bool(items) and all(isinstance(item, str) for item in items)


def _is_from(data: object, package: str) -> bool:
    """Whether a value is of a class of a package, which need not be installed."""
    return type(data).__module__.partition(".")[0] == package


def _unfit(data: object, where: str) -> RowError:
    return RowError(
        f"the data {where}is of the type {type(data).__name__}, expected a path, a list of rows "
        "such as [{'prompt': '…'}], a pandas DataFrame, a datasets.Dataset, or {'name': …} with "
        "one of these or a list of prompts. Convert it."
    )


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
            raise RowError(f"no file matches '{path}'. {_PASS}")
        expanded += matches
    return expanded


def open_path(path: str | Path, *, split: str | None, note: Note) -> RowSource:
    """Open a file, a folder that `save_to_disk` made, stdin, or a Hub id where nothing lies.

    Folders and Hub ids may end in `:split`, which wins over `split`.
    """
    text = str(path)
    place = Path(text)
    if not text:
        raise RowError(f"the path of the data is empty. {_PASS}")
    if text == STDIN:
        return RowSource("stdin", "stdin", stdin_rows())
    if place.is_dir():
        rows = folder_rows(place, split=split, note=note)
        return RowSource(place.resolve().name, f"'{text}'", rows, has_splits=True)
    if place.exists():
        return RowSource(stem_of(place), f"'{text}'", _file_rows(place))
    before, colon, after = text.rpartition(":")
    if colon and before and Path(before).is_dir():
        rows = folder_rows(Path(before), split=after, note=note)
        return RowSource(Path(before).resolve().name, f"'{text}'", rows, has_splits=True)
    if not _HUB_ID.fullmatch(text) or place.suffix.lower() in _FILE_LIKE:
        raise RowError(f"no file at '{text}'. {_PASS}")
    name = before if colon else text
    rows = hub_rows(name, split=after if colon else split, note=note)
    return RowSource(name.rpartition("/")[2], f"'{text}'", rows, has_splits=True)


def _file_rows(path: Path) -> RawRows:
    if path.suffix.lower() == ".parquet":
        return parquet_rows(path)
    if suffix_of(path) in TEXT_FORMATS:
        return text_rows(path)
    raise RowError(
        f"'{path}' ends in '{path.suffix}', expected .jsonl, .json, .csv or .tsv (also as .gz), or "
        ".parquet. Convert the file, or rename it after what it holds."
    )
