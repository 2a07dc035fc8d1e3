"""Reuse a trained artifact if its fingerprint (data, settings, inputs) is unchanged."""

import hashlib
import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from actcache.analysis.files import plain, write_json
from actcache.store.store import Store

Result = TypeVar("Result")


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
    written last, so a folder without it is incomplete, and its result is made again.
    """
    note = folder / "fingerprint.json"
    document = plain(fingerprint)
    if note.exists() and _read(note) == document:
        return load(folder)
    result = make()
    if folder.exists():
        shutil.rmtree(folder)
    folder.mkdir(parents=True)
    save(folder, result)
    write_json(note, document)
    return result


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
