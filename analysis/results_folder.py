"""The folder of an analysis: checking whose it is, emptying it, and where its sweep lies.

The store of a sweep may lie elsewhere, in a bucket above all: then the summary says where.
"""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from actcache.analysis.files import plain, tensor_header
from actcache.analysis.names import METHOD
from actcache.analysis.predict.reuse import FINGERPRINT, remove_artifact
from actcache.analysis.summary import StoreSummary, read_store, read_sweep_store
from actcache.analysis.sweep.open_sweep import open_sweep
from actcache.build.place import require_place
from actcache.errors import ActcacheError, FormatError, StoreExistsError
from actcache.identity import IDENTITY, require_same
from actcache.store.layout import record_name
from actcache.store.schema import DOCUMENT_LIMIT
from actcache.store.storage.address import bucket_address
from actcache.store.storage.atomic import lock_folder, make_folder, os_errors_explained, remove
from actcache.store.storage.local import LocalStorage
from actcache.store.storage.protocol import Storage
from actcache.store.store import Store
from actcache.store.writing.partial import destination_of, discard, require_outside_stores
from actcache.store.writing.receipts import remove_receipts

SUMMARY, DIRECTIONS = "summary.json", "directions.safetensors"
SWEEP, PREDICTORS, LEARNED = "sweep.zarr", "predictors", "learned.zarr"
REPORT, SAMPLES, CONFIG = "report.html", "samples.json", "config.toml"
FILES = (
    *(SUMMARY, CONFIG, "tables.md", REPORT, SAMPLES, DIRECTIONS, "planes.safetensors"),
    *("moments.npz", "steerability.npz", "predictors.npz"),
    *("steerability.png", "grid.png", "layers.png", "embeddings.png"),
    *("concepts.json", "concepts.png", "concepts.svg", "concepts.pdf"),
    *("steerability.svg", "grid.svg", "layers.svg", "embeddings.svg"),
    *("steerability.pdf", "grid.pdf", "layers.pdf", "embeddings.pdf"),
)
"""Files that `analyze` and `report` leave in a folder, beside the sweep and `predictors/`."""


def require_same_store(out: Path, store: Store) -> None:
    """Refuse a folder with results of another store, before anything in it is replaced.

    Raises:
        MismatchError: names what differs.
        FormatError: `summary.json` is no document of ours.
    """
    path = out / "summary.json"
    if path.exists():
        require_same(
            _identity(store),
            _identity(read_store(path)),
            what=f"'{store.path}' and the store that the results in '{out}' are of",
            remedy="Choose another folder with -o, or pass --overwrite.",
        )


def _identity(store: Store | StoreSummary) -> dict[str, Any]:
    provenance = plain(store.provenance)
    model = provenance.get("model")
    known = model if isinstance(model, dict) else {}  # an imported store may not say
    return {
        **{name: getattr(store, name) for name in ("n", "n_layers", "d_model")},
        **{name: provenance.get(name) for name in ("data_sha256", "tokenizer")},
        "model": {name: known.get(name) for name in IDENTITY},
    }


def place_of_sweep(out: Path, given: str | Path | None = None) -> str | Path:
    """Where the store of a sweep lies: a folder, or an address in a bucket.

    It is the given place, else the one that the results in `out` name, else `OUT/sweep.zarr`.

    Raises:
        FormatError: `summary.json` is no document of ours.
    """
    if given is None and (out / SUMMARY).is_file():
        given = read_sweep_store(out / SUMMARY)
    if given is None:
        return out / SWEEP
    place = bucket_address(given) or _absolute(Path(given))
    return out / SWEEP if place == _absolute(out) / SWEEP else place  # it moves with the folder


def _absolute(path: Path) -> Path:
    return Path(os.path.abspath(path))  # noqa: PTH100  # resolve() would follow links


@contextmanager
def results_folder(
    out: Path, store: Store, *, overwrite: bool, sweep_store: str | Path | None = None
) -> Iterator[str | Path]:
    """Make `out`, keep every other analysis out of it, and with `overwrite` remove its results.

    Gives the place of the sweep's store; `sweep_store` as in `place_of_sweep`.

    Raises:
        StoreExistsError: it is inside a store, or holds files of those names that are not results.
        ActcacheError: another analysis is writing it.
        MismatchError: without `overwrite`, its results are of another store.
    """
    require_outside_stores(out / SUMMARY)
    with os_errors_explained(f"'{out}' cannot be written"):
        make_folder(out.absolute())
        try:
            unlock = lock_folder(out)
        except BlockingIOError:
            raise ActcacheError(
                f"another analysis is writing to '{out}', expected one at a time. Wait for it, or "
                "choose another folder with -o."
            ) from None
    try:
        _require_ours(out, overwrite=overwrite)
        if overwrite:
            place = out / SWEEP if sweep_store is None else place_of_sweep(out, sweep_store)
        else:
            require_same_store(out, store)
            place = place_of_sweep(out, sweep_store)
        if overwrite:
            _remove_sweep(place)
            _remove_results(out)
        yield place
    finally:
        unlock()


def _require_ours(out: Path, *, overwrite: bool) -> None:
    """Refuse to write over, or to remove, what only has the names of results."""
    suspects = [*FILES, SWEEP, PREDICTORS] if not is_results(out) else [SWEEP] if overwrite else []
    foreign = [
        x for x in suspects if os.path.lexists(out / x) and not is_sweep(LocalStorage(out / x))
    ]
    if foreign:
        raise StoreExistsError(
            f"'{out / foreign[0]}' is not what analyze writes, so it will not be replaced. Choose "
            "another folder with -o."
        )


def require_place_of_sweep(out: Path, given: str | Path, *, overwrite: bool) -> None:
    """Refuse a place where no sweep can be written, before anything slow.

    Raises:
        StoreExistsError: with `overwrite`, a store is finished there, in a bucket; or it is inside
            a store, or where other results in `out` are written.
        MismatchError: what lies there is no sweep.
        ActcacheError: the folder or the bucket cannot be written.
    """
    place = place_of_sweep(out, given)
    destination = destination_of(place)
    if isinstance(place, Path):
        require_outside_stores(place, flag="--sweep-store")
        _require_beside_results(_absolute(place), _absolute(out))
        if place.exists() and not (place / record_name(0)).exists():
            raise StoreExistsError(
                f"'{place}' exists and is no store, expected a sweep or a new name. Choose another "
                "place with --sweep-store."
            )
    if not destination.finished():
        require_place(place, resume=True, overwrite=False)
        return
    if overwrite and bucket_address(place):
        raise StoreExistsError(
            f"'{destination.storage.location}' holds a finished store, expected room for a sweep: "
            "nothing is replaced in a bucket. Choose another place with --sweep-store."
        )
    open_sweep(place)


def _require_beside_results(place: Path, out: Path) -> None:
    """Refuse a place that holds the results folder, or that other results have in it."""
    if place in (out, *out.parents):
        raise StoreExistsError(
            f"'{place}' holds the results folder '{out}', expected a folder of its own. Choose "
            "another place with --sweep-store."
        )
    if out in place.parents and place != out / SWEEP:
        name = place.relative_to(out).parts[0]
        if name in (*FILES, SWEEP, PREDICTORS):
            raise StoreExistsError(
                f"'{place}' lies where analyze writes '{name}', expected a folder of its own. "
                "Choose another place with --sweep-store."
            )


def is_results(out: Path) -> bool:
    """Whether analyze wrote to a folder: its summary, directions or sweep say so."""
    return (
        _has_keys(out / SUMMARY, "store", "config")
        or is_sweep(LocalStorage(out / SWEEP))
        or is_sweep(destination_of(out / SWEEP).storage)
        or any(name.endswith(f"/{METHOD}") for name in tensor_header(out / DIRECTIONS))
    )


def is_sweep(storage: Storage) -> bool:
    """Whether a storage holds a sweep, finished or not: its first record lists propensities."""
    try:
        return b'/propensity/zarr.json"' in storage.read(record_name(0), at_most=DOCUMENT_LIMIT)
    except (FormatError, OSError):
        return False


def _remove_sweep(place: str | Path) -> None:
    """Remove a sweep, finished or not, and nothing else."""
    begun = destination_of(place).storage
    if is_sweep(begun):
        remove_receipts(begun)
        discard(place)
    if isinstance(place, Path) and is_sweep(LocalStorage(place)):
        remove(place)


def _has_keys(path: Path, *keys: str) -> bool:
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(document, dict) and document.keys() >= set(keys)


def _remove_results(out: Path) -> None:
    """Remove what `analyze` left in a folder, and nothing else; the summary last."""
    for name in FILES:
        if name not in (SUMMARY, DIRECTIONS):
            (out / name).unlink(missing_ok=True)
    predictors = out / PREDICTORS
    _remove_sweep(predictors / LEARNED)
    for note in predictors.glob(f"*/*/{FINGERPRINT}"):
        if not _has_keys(note, "store"):
            continue
        remove_artifact(note.parent)
        for folder in (note.parent, note.parent.parent, predictors):
            with suppress(OSError):  # it holds something else
                folder.rmdir()
    for name in (DIRECTIONS, SUMMARY):
        (out / name).unlink(missing_ok=True)
