"""Stores by a hostile author: documents and records mutated at random, their checksums made to fit.

    python -m tests.crash.fuzz_store --mutations 10000

The reader must refuse, or read; never crash, hang or allocate what no file backs.
"""

import argparse
import copy
import json
import random
import resource
import shutil
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

from actcache.errors import ActcacheError, IncompleteStoreError
from actcache.store.log import FileSum, encode_record
from actcache.store.store import open_store, verify
from tests.support.stores import build, example, scratch

JUNK: list[Any] = [None, True, False, 0, -1, 1, 2, 3, 1.0, 1e308, 2**31, 2**47, 2**63, 10**30]
JUNK += [
    "",
    "x",
    "n",
    "../..",
    "/etc",
    "string",
    "float64",
    "uint8",
    "a\0b",
    "\ud800",
    "C:\\udata",
    "é" * 300,
    "0" * 64,
]
JUNK += [[], {}, [[]], [1, 2, 3], {"name": "gzip"}]
SLOWEST = 5.0  # seconds of a processor; a hang is what it finds
LARGEST_KB = 64 << 10


def places(value, at=()):
    """Every place inside a JSON value."""
    yield at
    inner = (
        value.items()
        if isinstance(value, dict)
        else enumerate(value)
        if isinstance(value, list)
        else ()
    )
    for key, item in inner:
        yield from places(item, (*at, key))


def mutated(document, rng):
    """A JSON value with one to three places replaced, removed, renamed or doubled."""
    document = copy.deepcopy(document)
    for _ in range(rng.randint(1, 3)):
        *steps, last = rng.choice([at for at in places(document) if at] or [("x",)])
        inner = document
        for step in steps:
            inner = inner[step]
        action = rng.choice(["replace", "replace", "remove", "rename", "nudge", "nest"])
        if not isinstance(inner, dict | list) or (isinstance(inner, dict) and last not in inner):
            continue
        if action == "replace":
            inner[last] = copy.deepcopy(rng.choice(JUNK))
        elif action == "remove":
            del inner[last]
        elif action == "rename" and isinstance(inner, dict):
            inner[
                rng.choice(["x", "../x", "zarr.json", "", str(last) + "x", "\ud800", "é" * 300])
            ] = inner.pop(last)
        elif action == "nudge" and type(inner[last]) is int:
            inner[last] += rng.choice([-1, 1, 1000])
        elif action == "nest":
            for _ in range(rng.choice([1, 10, 3000])):
                inner[last] = [inner[last]]
            break  # too deep to walk through again
    return document


def as_text(document):
    """JSON of any depth; `json` itself gives up at about a thousand."""
    try:
        return json.dumps(document).encode()
    except RecursionError:
        return b'{"a":' + b"[" * 3000 + b"]" * 3000 + b"}"


def honest(folder, *, claimed=()):
    """Make record 0, the chain and the seal fit what the folder holds now, as its author would.

    Files in `claimed` are too large to be read: a record gives their size and a made-up checksum.
    """
    paths = sorted((folder / "commits").glob("c.*"), key=lambda path: int(path.name.split(".")[1]))
    previous = "0" * 64
    for number, path in enumerate(paths):
        raw = path.read_bytes()
        content = json.loads(raw)
        content = {k: v for k, v in content.items() if k not in ("record", "previous", "sha256")}
        files = content.get("files")
        if isinstance(files, dict):
            for name in files:
                if name in claimed:
                    files[name] = [(folder / name).stat().st_size, "0" * 64]
                elif (folder / name).is_file():
                    checksum = FileSum.of((folder / name).read_bytes())
                    files[name] = [checksum.n_bytes, checksum.sha256]
        raw, previous = encode_record(
            content, number=number, previous=previous, record_bytes=len(raw)
        )
        path.write_bytes(raw)


def read_everything(folder):
    store = open_store(folder, check=True)
    for name in store.columns:
        store[name]
    for name in store.columns.ragged_names:
        list(store.ragged(name))
    for name in store.arrays:
        store.array(name)[:]
        list(store.array(name).batches(2))
    for name in ("n", "n_layers", "sites", "positions", "config", "certificate", "n_bytes"):
        getattr(store, name)


def fuzz(scratch_folder, *, mutations, seed):
    """Count what became of so many mutations: refused, or read.

    Raises whatever the reader raises that it should not, with the mutation's number.
    """
    rng = random.Random(seed)
    clean, folder = scratch_folder / "clean.zarr", scratch_folder / "hostile.zarr"
    settings, values = example(n=5, shard_rows=2)
    build(clean, settings, values, certificate={"worst": 0.0})
    targets = [
        p for p in sorted(clean.rglob("*")) if p.name == "zarr.json" or p.parent.name == "commits"
    ]
    shutil.copytree(clean, folder)
    counts: Counter[str] = Counter()
    start_kb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for mutation in range(mutations):
        target = rng.choice(targets).relative_to(clean)
        raw = (clean / target).read_bytes()
        way = rng.choice(["json", "json", "json", "bytes", "column"])
        if way == "column":
            target = rng.choice(["id/c.0", "prompt/c.0", "prompt_tokens_offsets/c.0", "label/c.0"])
            raw = (clean / target).read_bytes()
        if way in ("bytes", "column"):
            at = rng.randrange(len(raw))
            junk = rng.randbytes(rng.choice([0, 1, 4])) if rng.random() < 0.8 else b"\xff" * 4
            changed = raw[:at] + junk + raw[at + rng.choice([0, 1, 4]) :]
        else:
            document = mutated(json.loads(raw), rng)
            changed = as_text(document)
            if target.suffix != ".json":
                changed = changed.ljust(len(raw) - 1) + b"\n"
        (folder / target).write_bytes(changed)
        try:
            if rng.random() < 0.8:
                honest(folder)
        except (ValueError, AssertionError, AttributeError, RecursionError, OSError, TypeError):
            pass  # beyond repair: the reader sees it as it is
        start = time.process_time()
        try:
            read_everything(folder)
            counts["read"] += 1
        except ActcacheError:
            counts["refused"] += 1
        except BaseException as error:
            error.add_note(f"mutation {mutation} of seed {seed}: {target} is {changed[:300]!r}")
            raise
        try:
            verify(folder)
        except IncompleteStoreError:
            pass  # a document that says so, and a log that bears it out
        except ActcacheError as error:  # what is damaged it reports; this is none of its business
            if "Upgrade actcache" not in str(error):
                raise
        if time.process_time() - start > SLOWEST:
            raise AssertionError(f"mutation {mutation} took {time.process_time() - start} s")
        for path in [target, *(f"commits/c.{i}.0" for i in range(5))]:
            (folder / path).write_bytes((clean / path).read_bytes())
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - start_kb
    if grown > LARGEST_KB:
        raise AssertionError(f"reading hostile stores took {grown} kB more than before")
    return counts


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mutations", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    with scratch() as folder:
        counts = fuzz(Path(folder), mutations=args.mutations, seed=args.seed)
    sys.stdout.write(f"{json.dumps(counts)}\n")


if __name__ == "__main__":
    main()
