"""Raw rows of what has columns: parquet files, data sets of `datasets`, and tables in memory."""

import importlib
import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from actcache.data.readers import RawRow, RawRows, first_line
from actcache.errors import RowError
from actcache.hub import first_sentence, prepare_hub

Note = Callable[[str], None]
"""Called with a sentence about what is ignored."""


def folder_rows(path: Path, *, split: str | None, note: Note) -> RawRows:
    """Read what `save_to_disk` wrote: of several splits `split`, else `train`."""
    if not any((path / name).is_file() for name in ("state.json", "dataset_dict.json")):
        raise RowError(
            f"'{path}' is a folder, but not a data set (it has no state.json or dataset_dict.json)."
            " Pass the files in it, or a folder made by save_to_disk."
        )
    datasets = _package("datasets", f"'{path}'")
    try:
        dataset = datasets.load_from_disk(str(path))
    except Exception as error:  # whatever the package raises is about the folder
        raise RowError(
            f"'{path}' cannot be read as a data set ({first_line(error)}). Save it again."
        ) from error
    if isinstance(dataset, Mapping):
        dataset = choose_split(dataset, f"'{path}'", split, note)
    elif split is not None:
        raise RowError(f"'{path}' is one data set without splits. Drop --split, or ':{split}'.")
    return dataset_rows(dataset, f"'{path}'", path.resolve().name)


def hub_rows(name: str, *, split: str | None, note: Note) -> RawRows:
    """Read a data set of the Hub, or of its cache."""
    datasets = _package("datasets", f"'{name}'")
    prepare_hub(name)
    chosen = split or "train"
    try:
        dataset = datasets.load_dataset(name, split=chosen)
    except Exception as error:  # no network, no such data set, no such split, no permission, …
        raise RowError(
            f"no file at '{name}', and no data set of that name on the Hub with a split "
            f"'{chosen}' ({first_sentence(error).rstrip('.')}). Check path, name and network, or "
            "pass a local file."
        ) from error
    if split is None:
        _note_splits(dataset.info.splits or (), f"'{name}'", chosen, note)
    return dataset_rows(dataset, f"'{name}'", name.rpartition("/")[2])


def choose_split(datasets: Mapping[str, Any], place: str, split: str | None, note: Note) -> Any:
    """Choose a data set of a `DatasetDict`, and say which are not read if nobody chose."""
    name = split or "train"
    if name not in datasets:
        names = ", ".join(datasets) or "none"
        raise RowError(
            f"{place} has no split '{name}', only {names}. Pass --split with one of them, or "
            f"'{place.strip(chr(39))}:SPLIT'."
        )
    if split is None:
        _note_splits(datasets, place, name, note)
    return datasets[name]


def _note_splits(names: Iterable[str], place: str, chosen: str, note: Note) -> None:
    others = [name for name in names if name != chosen]
    if others:
        note(
            f"{place}: the split '{chosen}' is read, {', '.join(others)} "
            f"{'is' if len(others) == 1 else 'are'} ignored; --split reads another"
        )


def parquet_rows(path: Path) -> RawRows:
    """Read a parquet file batch by batch."""
    parquet = _package("pyarrow.parquet", f"'{path}'")
    try:
        file = parquet.ParquetFile(path)
        classes = _class_names(file.schema_arrow)
        number = 0
        for batch in file.iter_batches(batch_size=1024):
            for row in batch.to_pylist():
                yield _row(row, classes, f"'{path}'", path.name, number)
                number += 1
    except RowError:
        raise
    except Exception as error:  # pyarrow's, and those of the codecs under it
        raise RowError(
            f"'{path}' cannot be read as parquet ({first_line(error)}). Write it again, or check "
            "that it was copied whole."
        ) from error


def _class_names(schema: Any) -> dict[str, list[str]]:
    """The names of the classes that `datasets` stored as numbers."""
    if b"huggingface" not in (schema.metadata or {}):
        return {}
    try:
        features = json.loads(schema.metadata[b"huggingface"])["info"]["features"]
        return {
            key: list(feature["names"])
            for key, feature in features.items()
            if isinstance(feature, dict) and feature.get("_type") == "ClassLabel"
        }
    except (ValueError, LookupError, TypeError):  # another program's: the numbers are read
        return {}


def dataset_rows(dataset: Any, place: str, short: str) -> RawRows:
    """Read a data set of the package `datasets`."""
    classes = {
        key: feature.names
        for key, feature in (dataset.features or {}).items()
        if type(feature).__name__ == "ClassLabel"
    }
    for number, row in enumerate(dataset):
        yield _row(row, classes, place, short, number)


def frame_rows(frame: Any, place: str, short: str) -> RawRows:
    """Read a pandas DataFrame; what pandas calls missing is a missing key."""
    columns = [str(name) for name in frame.columns]
    if repeated := next((name for name in columns if columns.count(name) > 1), None):
        raise RowError(
            f"{place} has the column '{repeated}' {columns.count(repeated)} times. Give each "
            "column its own name."
        )
    present = frame.notna().to_numpy()
    for number, values in enumerate(frame.itertuples(index=False, name=None)):
        row = {
            name: value if is_there else None
            for name, value, is_there in zip(columns, values, present[number], strict=True)
        }
        yield _row(row, {}, place, short, number)


def listed_rows(rows: Iterable[Any], place: str, short: str) -> RawRows:
    """Read rows in memory: mappings, or texts, which are prompts."""
    for number, row in enumerate(rows):
        if not isinstance(row, Mapping | str):
            raise RowError(
                f"{place} row {number} (from 0) is of the type {type(row).__name__}, expected a "
                "mapping such as {'prompt': '…'}, or a text, which is a prompt. Convert it."
            )
        values = {"prompt": row} if isinstance(row, str) else row
        yield _row(values, {}, place, short, number)


def _row(
    row: Mapping[Any, Any], classes: Mapping[str, list[str]], place: str, short: str, number: int
) -> RawRow:
    values = {str(key): _as_python(value) for key, value in row.items()}
    for key, names in classes.items():  # stored as numbers, but the names are what is meant
        value = values[key]
        values[key] = names[value] if value is not None and value >= 0 else None
    return RawRow(values, f"{place} row {number} (from 0)", f"{short}:{number}")


def _as_python(value: Any) -> Any:
    """NumPy's scalars and arrays as Python's own."""
    return value.tolist() if type(value).__module__ == "numpy" else value


def _package(name: str, place: str) -> Any:
    package = name.partition(".")[0]
    try:  # imported here: it is slow to import, and rarely needed
        return importlib.import_module(name)
    except ImportError:
        raise RowError(
            f"{place} needs the package '{package}', which is not installed. "
            f"Install it with: pip install {package}, or pass a .jsonl file."
        ) from None
