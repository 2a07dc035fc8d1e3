"""Reuse a trained artifact if its fingerprint (data, settings, inputs) is unchanged."""

import hashlib
import json
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from actcache.analysis.files import plain, write_json
from actcache.analysis.stats.units import MapUnits
from actcache.errors import FormatError, StoreNotFoundError
from actcache.store.storage.atomic import remove
from actcache.store.store import Store

Unit = TypeVar("Unit")
Result = TypeVar("Result")

FINGERPRINT = "fingerprint.json"

log = logging.getLogger("actcache")


@dataclass(frozen=True, kw_only=True)
class Artifact(Generic[Unit]):
    """Something that is trained: where it lies, and what decides it."""

    folder: Path
    fingerprint: Mapping[str, Any]
    """Everything that decides the result, as JSON has it."""

    unit: Unit
    """What it is trained from."""


def load_or_make(
    artifacts: Sequence[Artifact[Unit]],
    *,
    load: Callable[[Path], Result],
    make: Callable[[Unit], Result],
    save: Callable[[Path, Result], None],
    on_done: Callable[[], object] = lambda: None,
    map_units: MapUnits = map,
) -> list[Result]:
    """Load each result whose fingerprint is unchanged; make the others, and save each at once.

    `fingerprint.json` is written last, so a folder without it is incomplete, and its result is made
    again. So is one that cannot be read, which is logged. `on_done` is called for each result.
    """
    results: dict[int, Result] = {}
    for place, artifact in enumerate(artifacts):
        if _is_unchanged(artifact):
            try:
                results[place] = load(artifact.folder)
            except (FormatError, StoreNotFoundError):
                log.warning(
                    "actcache: '%s' cannot be read, so it is trained again", artifact.folder
                )
            else:
                on_done()
    missing = [place for place in range(len(artifacts)) if place not in results]
    made = map_units(make, [artifacts[place].unit for place in missing])
    for place, result in zip(missing, made, strict=True):
        folder = artifacts[place].folder
        remove_artifact(folder)
        folder.mkdir(parents=True, exist_ok=True)
        save(folder, result)
        write_json(folder / FINGERPRINT, plain(artifacts[place].fingerprint))
        results[place] = result
        on_done()
    return [results[place] for place in range(len(artifacts))]


def _is_unchanged(artifact: Artifact[Any]) -> bool:
    note = artifact.folder / FINGERPRINT
    return note.exists() and _read(note) == plain(artifact.fingerprint)


def remove_artifact(folder: Path) -> None:
    """Remove what `load_or_make` left in a folder, and nothing else; the fingerprint first."""
    (folder / FINGERPRINT).unlink(missing_ok=True)
    for file in folder.glob("*.safetensors"):
        remove(file)


def identity_of(store: Store) -> str:
    """SHA-256 of what decides a store's numbers: settings, provenance, rows and their splits."""
    about = {"config": store.config, "provenance": store.provenance, "n": store.n}
    rows = ["\0".join(store[name].tolist()) for name in ("id", "split")]
    return digest_of({"store": about, "rows": rows})


def digest_of(document: Mapping[str, Any]) -> str:
    """SHA-256 of a JSON document, whatever the order of its fields."""
    text = json.dumps(plain(document), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def _read(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
