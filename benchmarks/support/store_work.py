"""Write a synthetic store, or read one; print the seconds that each kind of work took as JSON.

`benchmarks.before_after` runs this file with the interpreter of either checkout, so it imports
nothing of this folder and finds the writer where each version has it.
"""

import importlib
import json
import shutil
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

N, LAYERS, D_MODEL = 1024, 16, 1024
POSITIONS = ("prompt", "positive", "negative")
REPEATS = 5


def of_actcache(name: str, *modules: str) -> Any:
    """Import a name from the first of these modules that exists."""
    for module in modules:
        try:
            return getattr(importlib.import_module(module), name)
        except (ImportError, AttributeError):
            continue
    raise ImportError(f"none of {modules} has {name}")


def write(path: Path) -> None:
    """Write a store of one behavior, 100 MB in float16."""
    writer_class = of_actcache("Writer", "actcache.store.writing.writer", "actcache.writer")
    row_array = of_actcache("RowArray", "actcache.store.schema", "actcache.schema")
    values = np.random.default_rng(0).normal(size=(LAYERS, 512, D_MODEL)).astype(np.float16)
    block = values.swapaxes(0, 1)
    letters = ["A", "B"] * (N // 2)
    columns = {
        "id": [f"row-{i}" for i in range(N)],
        "behavior": ["planted"] * N,
        "variant": ["base"] * N,
        "split": ["train"] * (N // 2) + ["test"] * (N // 2),
        "letter": letters,
        "label": [""] * N,
        "prompt": [f"question {i}" for i in range(N)],
        "positive": [f"({letter})" for letter in letters],
        "negative": ["(B)" if letter == "A" else "(A)" for letter in letters],
    }
    shutil.rmtree(path, ignore_errors=True)
    contents = {
        "kind": "residuals",
        "n": N,
        "arrays": [
            row_array(f"resid_post/{position}", LAYERS, D_MODEL, "float16")
            for position in POSITIONS
        ],
        "columns": columns,
        "config": {"synthetic": True},
        "provenance": {"data_sha256": "", "model": {"name": "none", "weights_sha256": ""}},
    }
    try:
        store_contents = of_actcache("StoreContents", "actcache.store.writing.contents")
    except ImportError:  # a checkout from before there were any
        create = partial(writer_class.create, path, **contents)
    else:
        create = partial(writer_class.create, path, store_contents(**contents))
    with create() as writer:
        while writer.committed < N:
            rows = writer.next_rows
            # Other values at each position, or a difference of means would be zero.
            writer.commit(
                {
                    f"resid_post/{position}": np.roll(block, shift, 2)[: rows.stop - rows.start]
                    for shift, position in enumerate(POSITIONS)
                }
            )
        writer.finish()


def read(path: Path) -> dict[str, Callable[[], object]]:
    """Return the kinds of reading by name; the page cache is warm."""
    import actcache

    residuals = actcache.open_store(path).resid("prompt")
    some = np.sort(np.random.default_rng(1).permutation(N)[:64])
    return {
        "store: open": lambda: actcache.open_store(path),
        "store: read one layer": lambda: residuals.layer(LAYERS // 2).copy(),
        "store: stream all layers": lambda: [
            batch.swapaxes(0, 1).view(np.uint16).max() for _, batch in residuals.batches()
        ],
        "store: read 64 rows": lambda: residuals[some],
    }


def least_seconds(work: Callable[[], object]) -> tuple[float, float]:
    """Return the least CPU and wall seconds of a few repeats, after one that is not counted."""
    cpu, wall = [], []
    for number in range(REPEATS + 1):
        start = time.process_time(), time.perf_counter()
        work()
        if number:
            cpu.append(time.process_time() - start[0])
            wall.append(time.perf_counter() - start[1])
    return min(cpu), min(wall)


def main() -> None:
    kind, path = sys.argv[1], Path(sys.argv[2])
    work = {"store: write": lambda: write(path)} if kind == "write" else read(path)
    print(json.dumps({name: least_seconds(run) for name, run in work.items()}))


if __name__ == "__main__":
    main()
