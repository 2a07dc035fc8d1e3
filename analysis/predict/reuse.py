"""What training left in a results folder, taken up again where it was made of the same things.

Refuses to know what is trained.
"""

import hashlib
import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from actcache.analysis.documents import plain
from actcache.analysis.files import write_json
from actcache.store.store import Store

Result = TypeVar("Result")


def kept(
    folder: Path,
    made_of: Mapping[str, Any],
    *,
    load: Callable[[Path], Result],
    make: Callable[[], Result],
    save: Callable[[Path, Result], None],
) -> Result:
    """The result in `folder` if it was made of the same things, else a new one that is kept there.

    Args:
        folder: holds nothing else. What its files were made of stands in `made_of.json`, which is
            written last, so files without it are made again.
        made_of: all that decides the result.
        load: reads the files.
        make: trains.
        save: writes the files.
    """
    note = folder / "made_of.json"
    wanted = plain(made_of)
    if note.exists() and _read(note) == wanted:
        return load(folder)
    made = make()
    if folder.exists():
        shutil.rmtree(folder)
    folder.mkdir(parents=True)
    save(folder, made)
    write_json(note, wanted)
    return made


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
