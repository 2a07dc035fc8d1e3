"""Reuse a trained artifact if its fingerprint (data, settings, inputs) is unchanged."""

import hashlib
import json
import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from actcache.analysis.files import plain, write_json
from actcache.errors import FormatError, StoreNotFoundError
from actcache.store.storage.atomic import remove
from actcache.store.store import Store

Result = TypeVar("Result")

FINGERPRINT = "fingerprint.json"

log = logging.getLogger("actcache")


def load_or_make(
    folder: Path,
    fingerprint: Mapping[str, Any],
    *,
    load: Callable[[Path], Result],
    make: Callable[[], Result],
    save: Callable[[Path, Result], None],
) -> Result:
    """Load the result in `folder` if its fingerprint is this one, else make and save a new one.

    The fingerprint is everything that decides the result, as JSON has it. `fingerprint.json` is
    written last, so a folder without it is incomplete, and its result is made again. So is one that
    cannot be read, which is logged.
    """
    note = folder / FINGERPRINT
    document = plain(fingerprint)
    if note.exists() and _read(note) == document:
        try:
            return load(folder)
        except (FormatError, StoreNotFoundError):
            log.warning("actcache: '%s' cannot be read, so it is trained again", folder)
    result = make()
    remove_artifact(folder)
    folder.mkdir(parents=True, exist_ok=True)
    save(folder, result)
    write_json(note, document)
    return result


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
