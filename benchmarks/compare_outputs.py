"""Does an analysis, or with `--store` a store, hold the same numbers as an older one?

`OLD` and `NEW` are two folders that `actcache analyze` wrote, or two stores. Of an analysis every
array is compared (directions, moments, steerability, predictors, the networks under `predictors/`,
and all values of sweep stores), and every number of the old `summary.json` must be in the new one.
Arrays are equal bit for bit, or differ by `--tolerance` at most, absolutely or over the array's
largest value; integers and texts must be equal. Pictures, tables.md and texts in summary.json are not compared.

Names are compared without case, spaces, punctuation and percent-encoding, after `RENAMES` and
those of `--renames` (a JSON object: regular expression to replacement). An array that is still
without a partner is looked for by its bits, and a number of summary.json by its value: both are
reported. A number whose place exists in both files must be equal in that place.

Stores are compared byte for byte. `benchmarks.support.store_bytes` names the fields that may differ.
Exits with 1 if anything differs.
"""

import argparse
import json
import math
import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import numpy as np

from benchmarks.support.store_bytes import compare_stores

RENAMES = {
    r"W2S(?:%20| )Top-(\d)": r"top\1",
    r"W2S(?:%20| )shuffled": "shuffled",
    r"/hindsight": "/best_on_test",
}
"""Renames of array and file names that their normal form does not cover, each tried by itself."""

SINGLE_FILES = ("directions.safetensors", "moments.npz", "steerability.npz", "predictors.npz")
LISTED = 20
"""Renamed, missing or differing things that are listed; the rest is counted."""


@dataclass
class Findings:
    """What a comparison found."""

    table: list[tuple[str, ...]]
    """Its first row is the head."""

    notes: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


def normal_form(name: str) -> str:
    """Spell a name without case, spaces, punctuation and percent-encoding; keep its slashes."""
    parts = unquote(name).lower().split("/")
    return "/".join(re.sub(r"[^a-z0-9]", "", part) for part in parts)


def pair_names(
    old: Sequence[str], new: Sequence[str], renames: Mapping[str, str]
) -> dict[str, str | None]:
    """Find the new name of each old one: the same, its normal form's, or a renamed one's."""
    by_form: dict[str, list[str]] = defaultdict(list)
    for name in new:
        by_form[normal_form(name)].append(name)
    existing = set(new)
    pairs: dict[str, str | None] = {}
    for name in old:
        spellings = [name, *(re.sub(pattern, to, name) for pattern, to in renames.items())]
        exact = [spelling for spelling in spellings if spelling in existing]
        similar = [
            by_form[normal_form(spelling)][0]
            for spelling in spellings
            if len(by_form[normal_form(spelling)]) == 1
        ]
        pairs[name] = next(iter([*exact, *similar]), None)
    return pairs


def read_arrays(out: Path) -> dict[str, np.ndarray]:
    """Read every array of an OUT folder under `file/name`."""
    from safetensors.numpy import load_file

    arrays: dict[str, np.ndarray] = {}
    for path in sorted(out.rglob("*")):
        file = path.relative_to(out).as_posix()
        if path.suffix == ".safetensors":
            arrays |= {f"{file}/{name}": array for name, array in load_file(path).items()}
        elif path.suffix == ".npz":
            with np.load(path, allow_pickle=False) as document:
                arrays |= {f"{file}/{name}": document[name] for name in document.files}
        elif path.suffix == ".zarr":
            arrays |= {f"{file}/{name}": array for name, array in read_store(path)}
    return arrays


def read_store(path: Path) -> Iterator[tuple[str, np.ndarray]]:
    """Read a store with zarr-python, which knows nothing of our code; the log is left out."""
    import zarr

    for name, node in zarr.open_group(path, mode="r").members(max_depth=None):
        if isinstance(node, zarr.Array) and name != "commits":
            yield name, np.asarray(node[...])


def same_bits(old: np.ndarray, new: np.ndarray) -> bool:
    """Tell whether two arrays hold the same; texts of any width are compared as texts."""
    if old.shape != new.shape:
        return False
    if old.dtype.kind in "UTO" and new.dtype.kind in "UTO":
        return bool((old == new).all())
    return old.dtype == new.dtype and old.tobytes() == new.tobytes()


def differences(old: np.ndarray, new: np.ndarray) -> tuple[float, float]:
    """Return the largest absolute difference, and the same over the old array's largest value.

    Only floats can be close: both are infinite where integers, texts, shape or dtype differ.
    """
    if old.shape != new.shape or old.dtype.kind != "f" or new.dtype != old.dtype:
        return math.inf, math.inf
    a, b = old.astype(np.float64), new.astype(np.float64)
    equal = (a == b) | (np.isnan(a) & np.isnan(b))
    apart = np.where(equal, 0.0, np.abs(a - b))
    absolute = math.inf if np.isnan(apart).any() else float(apart.max(initial=0.0))
    scale = float(np.abs(a[np.isfinite(a)]).max(initial=0.0))
    return absolute, absolute / scale if scale else math.inf


def close(old: float, new: float, tolerance: float) -> bool:
    """Tell whether two numbers are equal, or within tolerance of the larger of 1 and the old one."""
    if old == new or (math.isnan(old) and math.isnan(new)):
        return True
    return abs(old - new) <= tolerance * max(1.0, abs(old))


def compare_arrays(
    old: Mapping[str, np.ndarray],
    new: Mapping[str, np.ndarray],
    renames: Mapping[str, str],
    tolerance: float,
    findings: Findings,
) -> None:
    """Compare every array of the old folder with its partner in the new one."""
    pairs = pair_names(list(old), list(new), renames)
    partners = set(pairs.values())
    unpaired = [name for name in new if name not in partners]
    by_content = []
    for name in [name for name, partner in pairs.items() if partner is None]:
        same = [other for other in unpaired if same_bits(old[name], new[other])]
        pairs[name] = same[0] if same else None
        if same:
            by_content.append(f"{name} → {same[0]}")
            unpaired.remove(same[0])
    renamed = [f"{a} → {b}" for a, b in pairs.items() if b not in (None, a)]
    note_list(findings.notes, "arrays under another name", renamed)
    note_list(findings.notes, "of these, arrays found by their bits alone", by_content)
    note_list(findings.notes, "arrays that only the new folder has", unpaired)

    by_file: dict[str, list[str]] = defaultdict(list)
    for name in old:
        by_file[file_of(name)].append(name)
    for file, names in by_file.items():
        n_equal, largest = 0, (0.0, 0.0)
        for name in names:
            partner = pairs[name]
            if partner is None:
                findings.problems.append(f"{name} is missing")
                continue
            a, b = old[name], new[partner]
            if same_bits(a, b):
                n_equal += 1
                continue
            apart = differences(a, b)
            largest = max(largest[0], apart[0]), max(largest[1], apart[1])
            if min(apart) > tolerance:
                findings.problems.append(describe(name, a, b, apart))
        sizes = [f"{value:.3g}" for value in largest]
        findings.table.append((file, str(len(names)), str(n_equal), *sizes))


def describe(name: str, old: np.ndarray, new: np.ndarray, apart: tuple[float, float]) -> str:
    """Say in one line how two arrays differ."""
    if old.shape != new.shape or old.dtype != new.dtype:
        return f"{name}: {old.dtype} {old.shape} became {new.dtype} {new.shape}"
    places = np.argwhere(~((old == new) | ((old != old) & (new != new))))  # NaN
    first = tuple(places[0].tolist())
    return (
        f"{name}: {len(places)} of {old.size} values differ, by {apart[0]:.3g} at most; "
        f"the first at {list(first)}: {old[first]} became {new[first]}"
    )


def file_of(name: str) -> str:
    """Name the file, or the folder of networks, under which an array is counted."""
    top = name.split("/")[0]
    if top != "predictors":
        return top
    return "predictors/learned.zarr" if "learned.zarr" in name else "predictors/**/*.safetensors"


def numbers(document: Any, place: str = "") -> Iterator[tuple[str, float]]:
    """List every number of a JSON document with its place."""
    if isinstance(document, Mapping):
        for key, value in document.items():
            yield from numbers(value, f"{place}/{str(key).replace('/', '%2F')}" if place else key)
    elif isinstance(document, list):
        for index, value in enumerate(document):
            yield from numbers(value, f"{place}/{index}")
    elif isinstance(document, (int, float)) and not isinstance(document, bool):
        yield place, float(document)


def compare_summaries(
    old: Any, new: Any, renames: Mapping[str, str], tolerance: float, findings: Findings
) -> None:
    """Look up every number of the old summary.json in the new one."""
    old_numbers, new_numbers = dict(numbers(old)), dict(numbers(new))
    pairs = pair_names(list(old_numbers), list(new_numbers), renames)
    values = np.sort(np.array([x for x in new_numbers.values() if not math.isnan(x)]))
    leaves = {(leaf(place), value) for place, value in new_numbers.items()}
    in_place, same_leaf, by_value, largest = 0, 0, 0, 0.0
    moved: Counter[str] = Counter()
    for place, value in old_numbers.items():
        partner = pairs[place]
        if partner is not None:
            in_place += 1
            apart = (
                0.0 if close(value, new_numbers[partner], 0) else abs(value - new_numbers[partner])
            )
            largest = max(largest, apart)
            if not close(value, new_numbers[partner], tolerance):
                findings.problems.append(
                    f"summary.json, {place}: {value!r} became {new_numbers[partner]!r}"
                )
            continue
        moved[re.sub(r"/\d+$", "/…", place.split("/", 1)[0] + "/…/" + leaf(place))] += 1
        if (leaf(place), value) in leaves:
            same_leaf += 1
        elif nearest(values, value, tolerance):
            by_value += 1
        else:
            findings.problems.append(f"summary.json, {place}: {value!r} is not in the new file")
    findings.table.append(
        (
            "summary.json (numbers)",
            str(len(old_numbers)),
            f"{in_place} in place",
            f"{largest:.3g}",
            "",
        )
    )
    if moved:
        findings.notes.append(
            f"numbers of summary.json whose place is gone: {same_leaf} found under the same last "
            f"name, {by_value} found by value alone"
        )
        note_list(findings.notes, "such places", [f"{place} ({n})" for place, n in moved.items()])


def leaf(place: str) -> str:
    """Return the last name of a place, without indices of lists."""
    return normal_form(re.sub(r"(/\d+)+$", "", place).rsplit("/", 1)[-1])


def nearest(values: np.ndarray, value: float, tolerance: float) -> bool:
    """Tell whether sorted `values` hold one that is close to `value`."""
    at = int(np.searchsorted(values, value))
    return any(close(value, float(x), tolerance) for x in values[max(0, at - 1) : at + 1])


def note_list(notes: list[str], title: str, items: Sequence[str]) -> None:
    """Add a line with a count and the first few items, if there are any."""
    if items:
        rest = f"\n    … and {len(items) - LISTED} more" if len(items) > LISTED else ""
        notes.append(f"{title}: {len(items)}\n    " + "\n    ".join(items[:LISTED]) + rest)


def compare_folders(
    old: Path, new: Path, *, renames: Mapping[str, str], tolerance: float
) -> Findings:
    """Compare two OUT folders."""
    head = ("file", "arrays", "equal bit for bit", "largest difference", "relative")
    findings = Findings([head])
    for name in SINGLE_FILES:
        if not (old / name).exists():
            findings.notes.append(f"{name} is not in the old folder")
    old_arrays, new_arrays = read_arrays(old), read_arrays(new)
    compare_arrays(old_arrays, new_arrays, renames, tolerance, findings)
    documents = [
        json.loads((folder / "summary.json").read_text(encoding="utf-8")) for folder in (old, new)
    ]
    compare_summaries(documents[0], documents[1], renames, tolerance, findings)
    return findings


def compare_store_folders(old: Path, new: Path) -> Findings:
    """Compare two stores byte for byte, and list the fields that are excused."""
    comparison = compare_stores(old, new)
    head = ("file", "field that may differ", "old", "new")
    rows = [tuple(x if len(x) <= 60 else f"{x[:20]}…" for x in row) for row in comparison.excused]
    note = (
        f"{comparison.n_equal} files ({comparison.bytes_equal:,} bytes) are equal byte for byte, "
        f"{len({row[0] for row in rows})} in all but the fields above."
    )
    return Findings([head, *rows], [note], comparison.problems)


def show(findings: Findings) -> None:
    """Print a Markdown table, then notes, then what differs."""
    head, *rows = findings.table
    print("| " + " | ".join(head) + " |\n|" + "---|" * len(head))
    for row in rows:
        print("| " + " | ".join(row) + " |")
    print()
    for note in findings.notes:
        print(note)
    for problem in findings.problems[:LISTED]:
        print(f"DIFFERS  {problem}")
    if len(findings.problems) > LISTED:
        print(f"DIFFERS  … and {len(findings.problems) - LISTED} more")
    print("\nThe outputs are equal." if not findings.problems else "\nThe outputs differ.")


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("old", type=Path)
    parser.add_argument("new", type=Path)
    parser.add_argument("--store", action="store_true", help="compare two stores, byte for byte")
    parser.add_argument("--renames", type=Path, help="JSON: regular expression to replacement")
    parser.add_argument("--tolerance", type=float, default=1e-6, help="default %(default)s")
    args = parser.parse_args(argv)
    if args.store:
        findings = compare_store_folders(args.old, args.new)
    else:
        renames = RENAMES | (json.loads(args.renames.read_text("utf-8")) if args.renames else {})
        findings = compare_folders(args.old, args.new, renames=renames, tolerance=args.tolerance)
    show(findings)
    return 1 if findings.problems else 0


if __name__ == "__main__":
    raise SystemExit(main())
