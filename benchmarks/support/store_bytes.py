"""Compare two stores byte for byte, except for a short list of fields.

What may differ, and where: in the group's `zarr.json` the fields of `EXCUSED` (versions of
packages, and paths of the model); in each record of the log the chain (`previous`, `sha256`) and
size and checksum of `zarr.json`, which follow from them. In return both logs must hold: each record
names the one before it, and the last one vouches for the `zarr.json` that is there. Every other
byte of every file is compared, keys of documents in their order, spelled in the same style.
"""

import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

EXCUSED = (
    ("attributes", "config", "model"),
    ("attributes", "provenance", "model", "name"),
    ("attributes", "provenance", "model", "commit"),
    ("attributes", "provenance", "versions"),
)
"""Fields of the group's zarr.json that say where and by which packages a store was made."""

CHAIN = (("previous",), ("sha256",), ("files", "zarr.json"))
"""Fields of a record of the log that depend on the bytes of zarr.json."""

STYLES: tuple[Callable[[Any], str], ...] = (
    lambda document: json.dumps(document, indent=2),
    lambda document: json.dumps(document, indent=2, ensure_ascii=False),
    lambda document: json.dumps(document, separators=(",", ":"), ensure_ascii=False),
)
"""The ways in which a store's documents are spelled."""

Difference = tuple[str, str, str, str]
"""File, field, old value, new value."""


@dataclass
class StoreComparison:
    """How two stores differ."""

    excused: list[Difference] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    """One line for each difference that is not excused."""

    n_equal: int = 0
    """Files that are equal byte for byte."""

    bytes_equal: int = 0


def compare_stores(old: Path, new: Path) -> StoreComparison:
    """Compare all files of two stores."""
    comparison = StoreComparison()
    problems = comparison.problems
    files = [
        {path.relative_to(store).as_posix() for path in store.rglob("*") if path.is_file()}
        for store in (old, new)
    ]
    problems += [f"{name} is in the old store only" for name in sorted(files[0] - files[1])]
    problems += [f"{name} is in the new store only" for name in sorted(files[1] - files[0])]
    for name in sorted(files[0] & files[1]):
        raw_old, raw_new = (old / name).read_bytes(), (new / name).read_bytes()
        if raw_old == raw_new:
            comparison.n_equal += 1
            comparison.bytes_equal += len(raw_old)
            continue
        fields = EXCUSED if name == "zarr.json" else CHAIN if is_record(name) else ()
        if not fields:
            problems.append(f"{name}: {first_difference(raw_old, raw_new)}")
            continue
        fields_differ, problem = compare_documents(raw_old, raw_new, fields)
        comparison.excused += [(name, *difference) for difference in fields_differ]
        if problem:
            problems.append(f"{name}: {problem}")
    problems += [*broken_log("old", old), *broken_log("new", new)]
    return comparison


def is_record(name: str) -> bool:
    """Tell whether a file is a record of the log."""
    return name.startswith("commits/c.")


def first_difference(old: bytes, new: bytes) -> str:
    """Say where two files differ first."""
    if len(old) != len(new):
        return f"{len(old)} bytes became {len(new)}"
    offset = next(i for i, (a, b) in enumerate(zip(old, new, strict=True)) if a != b)
    n_bytes = sum(a != b for a, b in zip(old, new, strict=True))
    return f"{n_bytes} of {len(old)} bytes differ, the first at offset {offset}"


def compare_documents(
    raw_old: bytes, raw_new: bytes, fields: tuple[tuple[str, ...], ...]
) -> tuple[list[tuple[str, str, str]], str]:
    """Return the excused fields that differ, and what else does; empty if nothing else."""
    old, new = json.loads(raw_old), json.loads(raw_new)
    styles = [style_of(raw, document) for raw, document in ((raw_old, old), (raw_new, new))]
    differing = []
    for keys in fields:
        values = remove(old, keys), remove(new, keys)
        if values[0] != values[1]:
            differing.append((".".join(keys), json.dumps(values[0]), json.dumps(values[1])))
    rest = json.dumps(old), json.dumps(new)
    if rest[0] != rest[1]:
        return differing, "besides the excused fields, " + first_place(old, new)
    if styles[0] != styles[1] or styles[0] is None:
        return differing, "the document is spelled in another style"
    return differing, ""


def style_of(raw: bytes, document: Any) -> tuple[int, int] | None:
    """Return the style of a document's bytes and whether it is padded; None if neither fits."""
    text = raw.decode()
    for number, style in enumerate(STYLES):
        if style(document) == text.rstrip():
            return number, len(raw) if text != text.rstrip() else 0
    return None


def remove(document: Any, keys: tuple[str, ...]) -> Any:
    """Take a field out of a document; None where it has none."""
    for key in keys[:-1]:
        document = document.get(key, {})
    return document.pop(keys[-1], None)


def leaves(document: Any, place: str = "") -> Iterator[tuple[str, Any]]:
    """List all values of a JSON document with their places."""
    if isinstance(document, dict) and document:
        for key, value in document.items():
            yield from leaves(value, f"{place}.{key}" if place else key)
    else:
        yield place, document


def first_place(old: Any, new: Any) -> str:
    """Say where two documents differ first."""
    old_leaves, new_leaves = dict(leaves(old)), dict(leaves(new))
    for place in [*old_leaves, *new_leaves]:
        values = [json.dumps(part.get(place, "(missing)")) for part in (old_leaves, new_leaves)]
        if values[0] != values[1]:
            return f"{place} was {values[0]} and is {values[1]}"
    return "the order of keys differs"


def broken_log(side: str, store: Path) -> list[str]:
    """Check that the records chain, and that the last one vouches for zarr.json."""
    paths = sorted((store / "commits").glob("c.*.0"), key=lambda path: int(path.name.split(".")[1]))
    previous, record = "0" * 64, {}
    for path in paths:
        record = json.loads(path.read_bytes())
        if record["previous"] != previous:
            return [f"{path.name} of the {side} store's log does not follow the record before it"]
        previous = record["sha256"]
    root = (store / "zarr.json").read_bytes()
    if record.get("files", {}).get("zarr.json") != [len(root), hashlib.sha256(root).hexdigest()]:
        return [f"the last record of the {side} store's log does not vouch for its zarr.json"]
    return []
