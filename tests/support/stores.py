"""Small stores to test with, and the golden one: `python -m tests.support.stores tests/golden/format_1.zarr`."""

import json
import sys
import tempfile
from pathlib import Path

import numpy as np
from hypothesis import strategies as st

from actcache.store.schema import Ragged, RowArray
from actcache.store.store import open_store
from actcache.store.writing.contents import StoreContents
from actcache.store.writing.writer import Writer


def scratch():
    """A temporary folder, in memory where there is such a place: what is tested is not the disk."""
    memory = Path("/dev/shm")
    return tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else None)


def random_values(array, n, rng):
    """Finite values `[n, layer, width]` as they are stored: of bfloat16 the bits."""
    values = rng.normal(size=(n, array.n_layers, array.width)).astype(np.float32)
    if array.dtype == "bfloat16":
        return (values.view(np.uint32) >> 16).astype(np.uint16)
    return values.astype(array.dtype)


def example(*, n=11, shard_rows=4, seed=0, arrays=None):
    """Settings of a small store with every kind of array and column, and its values."""
    rng = np.random.default_rng(seed)
    if arrays is None:
        arrays = [
            RowArray("resid_post/prompt", 3, 4, "float16"),
            RowArray("resid_post/fork", 3, 4, "bfloat16"),
            RowArray("embed/prompt", 1, 4, "float32"),
        ]
    settings = {
        "kind": "residuals",
        "n": n,
        "arrays": arrays,
        "columns": {
            "id": [f"row-{i}" for i in range(n)],
            "behavior": ["narcissism" if i % 3 else "müßiggang" for i in range(n)],
            "prompt": [f"Is {i} a number?\n" * (i % 3) for i in range(n)],
            "label": np.arange(n) % 2 == 0,
            "n_tokens": np.arange(n, dtype=np.int64) * 3,
            "embedding": rng.normal(size=(n, 2)).astype(np.float32),
            "prompt_tokens": Ragged.of([list(range(i % 5)) for i in range(n)]),
            "layer": np.arange(arrays[0].n_layers),
        },
        "config": {"model": "tiny", "batch_tokens": 64, "positions": ["prompt", "fork"]},
        "provenance": {"model": {"weights_sha256": "ab" * 32, "n_layers": 3}, "seed": None},
        "shard_rows": shard_rows,
    }
    return settings, {array.name: random_values(array, n, rng) for array in arrays}


@st.composite
def shapes(draw):
    """Arguments of `shaped`: any shapes, dtypes and shard sizes."""
    names = st.sampled_from(["resid_post/prompt", "resid_post/fork", "embed/prompt", "deep/er/x"])
    kinds = st.tuples(
        st.integers(1, 4), st.integers(1, 5), st.sampled_from(["float32", "float16", "bfloat16"])
    )
    n = draw(st.integers(1, 12))
    return {
        "n": n,
        "shard_rows": draw(st.integers(1, n)),
        "seed": draw(st.integers(0, 99)),
        "kinds": draw(st.dictionaries(names, kinds, min_size=1)),
    }


def shaped(*, kinds, n, shard_rows, seed):
    """Settings and values with given row arrays, each a name with layers, width and dtype.

    Apart from `shapes`, because beartype draws random numbers, which strategies must not.
    """
    arrays = [RowArray(name, *kind) for name, kind in kinds.items()]
    return example(n=n, shard_rows=shard_rows, seed=seed, arrays=arrays)


def commit_next(writer, values):
    writer.commit({name: array[writer.next_rows] for name, array in values.items()})


def fill(writer, values, *, certificate=None):
    """Commit all that is left, and finish."""
    while writer.committed < writer.n:
        commit_next(writer, values)
    writer.finish(certificate)


def build(path, settings, values, *, certificate=None):
    """A finished store."""
    with Writer.create(path, StoreContents(**settings)) as writer:
        fill(writer, values, certificate=certificate)
    return path


def file_bytes(folder):
    """Every file of a folder by its path in it."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def golden():
    """Settings and values of the golden store: small whole numbers, exact in every dtype."""
    settings, values = example(n=3, shard_rows=2)
    settings["columns"]["embedding"] = np.arange(6, dtype=np.float32).reshape(3, 2)
    for at, (name, array) in enumerate(values.items()):
        counted = np.arange(array.size, dtype=np.float32).reshape(array.shape) - 8 * at
        bits = (counted.view(np.uint32) >> 16).astype(np.uint16)
        values[name] = bits if array.dtype == np.uint16 else counted.astype(array.dtype)
    return settings, values


def as_json(store):
    """Every value of a store as JSON: of each array, column and ragged column."""
    return {
        "arrays": {name: store.array(name)[:].tolist() for name in store.arrays},
        "columns": {name: store[name].tolist() for name in store.columns},
        "ragged": {
            name: [row.tolist() for row in store.ragged(name)]
            for name in store.columns.ragged_names
        },
        "config": store.config,
        "provenance": store.provenance,
        "certificate": store.certificate,
    }


GOLDEN_CERTIFICATE = {"largest_relative_error": [0.0, 0.0, 0.5]}

if __name__ == "__main__":
    folder = Path(sys.argv[1])
    build(folder, *golden(), certificate=GOLDEN_CERTIFICATE)
    text = json.dumps(as_json(open_store(folder)), ensure_ascii=False)
    folder.with_suffix(".json").write_text(text + "\n", encoding="utf-8")
