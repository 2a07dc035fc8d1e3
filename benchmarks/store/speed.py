"""Is the store as fast as the disk, and faster than other formats? What does it cost a build?

Writing is measured against a raw file, reading against `np.memmap`; then both against zarr-python,
h5py, safetensors and a file a prompt (`benchmarks.store.formats`); with `--model` the store's share of a
build.

The floors hold the same bytes: one file written front to back and synced once; one sample-major
memory map. Ours syncs and checksums every shard. Reading is from the page cache, so it shows what
the store costs, not the disk; the map is layer-major for one layer and sample-major for the rest,
each the best that a plain file can be for that question.
"""

import os
import shutil
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np

from actcache.store.schema import RowArray, shard_rows
from actcache.store.store import open_store, verify
from actcache.store.writing.contents import StoreContents
from actcache.store.writing.writer import Writer
from benchmarks.store.formats import FORMATS, Format, Reader, synced
from benchmarks.support.turns import arguments, in_turns, ratio, report

POSITIONS = ("prompt", "positive")


def largest(batch: np.ndarray) -> int:
    """Reads every byte, at the speed of memory."""
    return int(batch.view(np.uint16).max())


def main(argv: Sequence[str] | None = None) -> None:
    parser = arguments(__doc__)
    parser.add_argument("--n", type=int, default=2048, help="rows (default 2048)")
    parser.add_argument("--layers", type=int, default=32, help="default 32")
    parser.add_argument("--d-model", type=int, default=2048, help="default 2048")
    parser.add_argument("--dtype", default="float16", help="float16, bfloat16 or float32")
    parser.add_argument("--folder", help="on the disk in question; default: the temporary one")
    parser.add_argument("--quick", action="store_true", help="a small store: does it run at all?")
    parser.add_argument("--model", help="a folder: also measure the store's share of a build")
    parser.add_argument("--data", nargs="*", default=[], help="rows for --model")
    parser.add_argument("--limit", type=int, default=512, help="of them (default 512)")
    args = parser.parse_args(argv)
    if args.quick:
        args.n, args.layers, args.d_model, args.repeats = 128, 4, 64, 1
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        figures = measured(
            Path(folder), args.n, args.layers, args.d_model, args.dtype, args.repeats
        )
        inner = Path(folder, "formats")
        figures |= beside_formats(
            inner, args.n, args.layers, args.d_model, args.dtype, args.repeats
        )
        if args.model:
            figures |= share_of_build(Path(folder), args.model, args.data, limit=args.limit)
    size = f"{args.n} x {args.layers} x {args.d_model} {args.dtype}, {len(POSITIONS)} positions"
    report("store", figures, about={"store": size, "repeats": args.repeats})


def measured(
    folder: Path, n: int, n_layers: int, d_model: int, dtype: str, repeats: int
) -> dict[str, float]:
    arrays = [RowArray(f"resid_post/{name}", n_layers, d_model, dtype) for name in POSITIONS]  # type: ignore[arg-type]  # argparse gives a plain str; RowArray checks it
    block = example_block(n_layers, d_model, dtype)
    path, raw = folder / "a.zarr", folder / "raw"

    def write() -> None:
        columns = {"id": [str(i) for i in range(n)]}
        shutil.rmtree(path, ignore_errors=True)
        with Writer.create(
            path,
            StoreContents(
                kind="residuals", n=n, arrays=arrays, columns=columns, config={}, provenance={}
            ),
        ) as writer:
            while writer.committed < n:
                rows = writer.next_rows
                writer.commit({array.name: block[: rows.stop - rows.start] for array in arrays})
            writer.finish()

    def write_raw() -> None:
        raw.unlink(missing_ok=True)
        whole = block.swapaxes(0, 1)  # as it lies in memory
        with raw.open("wb", buffering=0) as file:
            for _ in arrays:
                for start in range(0, n, 512):
                    rows = min(512, n - start)
                    for layer in whole:
                        file.write(layer[:rows].data)
            os.fsync(file.fileno())

    took = in_turns({"write": write, "raw file": write_raw}, repeats=repeats)
    n_bytes = n * sum(array.row_bytes for array in arrays)
    figures = {
        "write: speed / raw file": ratio(took, "raw file", "write"),
        "write GB/s": n_bytes / 1e9 / min(took["write"]),
    }
    store = open_store(path)
    resid = store.resid(POSITIONS[0])
    plain = resid.bits if dtype == "bfloat16" else resid
    by_row = np.memmap(folder / "rows", plain.dtype, "w+", shape=resid.shape)
    by_layer = np.memmap(folder / "layers", plain.dtype, "w+", shape=(n_layers, n, d_model))
    for rows, batch in plain.batches():
        by_row[rows] = batch
        by_layer[:, rows] = batch.swapaxes(0, 1)
    some = np.sort(np.random.default_rng(1).permutation(n)[:64])
    size = next(plain.batches())[0].size
    questions: dict[str, tuple[Callable[[], object], Callable[[], object]]] = {
        "one layer": (
            lambda: owned(plain.layer(n_layers // 2)),
            lambda: by_layer[n_layers // 2].copy(),
        ),
        "stream": (
            lambda: [largest(batch.swapaxes(0, 1)) for _, batch in plain.batches()],
            lambda: [largest(by_row[at : at + size]) for at in range(0, n, size)],
        ),
        "64 random rows of one layer": (lambda: plain.layer(3, some), lambda: by_layer[3][some]),
        "64 random rows": (lambda: plain[some], lambda: by_row[some]),
        "one row": (lambda: plain[7].copy(), lambda: by_row[7].copy()),
    }
    for name, (store_read, memmap) in questions.items():
        took = in_turns({"ours": store_read, "memmap": memmap}, repeats=4 * repeats)
        figures[f"{name}: speed / np.memmap"] = ratio(took, "memmap", "ours")
    if dtype == "bfloat16":
        took = in_turns({"float32": lambda: [x for _, x in resid.batches()]}, repeats=repeats)
        figures["stream as float32, GB/s on disk"] = (
            n * arrays[0].row_bytes / 1e9 / min(took["float32"])
        )
    about_open = in_turns(
        {"open": lambda: open_store(path), "verify": lambda: verify(path)}, repeats=repeats
    )
    took = in_turns(
        {
            name: lambda check=check: [  # type: ignore[misc]  # mypy does not infer its default
                largest(batch.swapaxes(0, 1))
                for residuals in [open_store(path, check=check).array(store.arrays[0])]
                for _, batch in (residuals.bits if dtype == "bfloat16" else residuals).batches()
            ]
            for name, check in (("plain", False), ("checked", True))
        },
        repeats=repeats,
    )
    figures["stream, first read with check=True / without"] = ratio(took, "checked", "plain")
    figures["open, ms"] = 1e3 * min(about_open["open"])
    figures["verify GB/s"] = n_bytes / 1e9 / min(about_open["verify"])
    return figures


def owned(array: np.ndarray) -> np.ndarray:
    """The array in memory of its own: a view of the file (read-only) is copied, a copy is not."""
    return array if array.flags.writeable else array.copy()


def example_block(n_layers: int, d_model: int, dtype: str) -> np.ndarray:
    """512 rows `[row, layer, d_model]` as they are stored, layer by layer in memory."""
    values = np.random.default_rng(0).normal(size=(n_layers, 512, d_model)).astype(np.float32)
    bits = (values.view(np.uint32) >> 16).astype(np.uint16)
    return (bits if dtype == "bfloat16" else values.astype(dtype)).swapaxes(0, 1)


def beside_formats(
    folder: Path, n: int, n_layers: int, d_model: int, dtype: str, repeats: int
) -> dict[str, float]:
    """Time of each format over ours, one position; more is better for us. Page cache warm."""
    array = RowArray("resid_post/prompt", n_layers, d_model, dtype)  # type: ignore[arg-type]  # as above
    block = example_block(n_layers, d_model, dtype)
    step = min(shard_rows([array], n)[0], 512)
    sizes = [min(step, n - start) for start in range(0, n, step)]
    path = folder / "ours" / "a.zarr"

    def write() -> None:
        shutil.rmtree(path.parent, ignore_errors=True)
        path.parent.mkdir(parents=True)
        with Writer.create(
            path,
            StoreContents(
                kind="residuals",
                n=n,
                arrays=[array],
                columns={"id": [str(i) for i in range(n)]},
                config={},
                provenance={},
                shard_rows=step,
            ),
        ) as writer:
            for size in sizes:
                writer.commit({array.name: block[:size]})
            writer.finish()

    def write_as(name: str, form: Format) -> None:
        shutil.rmtree(folder / name, ignore_errors=True)
        (folder / name).mkdir()
        form.write(folder / name, [block[:size] for size in sizes])
        synced(folder / name)

    writes: dict[str, Callable[[], object]] = {"ours": write}
    writes |= {name: partial(write_as, name, form) for name, form in FORMATS.items()}
    took = in_turns(writes, repeats=max(1, repeats // 2))
    figures = {f"write: {name} / ours": ratio(took, name, "ours") for name in FORMATS}
    stored = open_store(path).array(array.name)
    plain = stored.bits if dtype == "bfloat16" else stored
    readers = {name: form.open(folder / name) for name, form in FORMATS.items()}
    readers["ours"] = Reader(
        lambda layer: owned(plain.layer(layer)),
        lambda: (batch.swapaxes(0, 1) for _, batch in plain.batches()),
        lambda rows: plain[rows],
        lambda rows, layer: plain.layer(layer, rows),
    )
    some = np.sort(np.random.default_rng(1).permutation(n)[:64]).tolist()
    middle = n_layers // 2
    questions: dict[str, Callable[[Reader], object]] = {
        "one layer": lambda reader: reader.layer(middle),
        "stream": lambda reader: max(map(largest, reader.stream())),
        "64 random rows": lambda reader: reader.rows(some),
        "64 random rows of one layer": lambda reader: reader.rows_of_layer(some, middle),
    }
    for question, ask in questions.items():
        asked = {name: partial(ask, reader) for name, reader in readers.items()}
        took = in_turns(asked, repeats=repeats)
        figures |= {f"{question}: {name} / ours": ratio(took, name, "ours") for name in FORMATS}
    for name, reader in readers.items():  # all of them hold what was written
        np.testing.assert_array_equal(
            reader.layer(middle)[: sizes[0]], block[: sizes[0], middle], err_msg=name
        )
    return figures


def share_of_build(
    folder: Path, model: str, data: Sequence[str], *, limit: int
) -> dict[str, float]:
    """What part of a build's time passes in the store: created, committed, finished.

    Commits run beside the next passes, so what the build waits for them is less: both are given.
    """
    from actcache.build.config import BuildConfig
    from actcache.build.plan import plan_build
    from actcache.build.run import run_build
    from actcache.data.formats import read_samples
    from actcache.engine.model import load_model

    plan = plan_build(read_samples(list(data), limit=limit), BuildConfig(model=model))
    loaded = load_model(model)
    loaded.digest  # noqa: B018  # computed once a model, however many rows a build has
    in_store, waited = 0.0, 0.0

    def timed(call: Callable[..., Any], *, main_thread: bool) -> Callable[..., Any]:
        def run(*args: Any, **settings: Any) -> Any:
            nonlocal in_store, waited
            start = time.perf_counter()
            try:
                return call(*args, **settings)
            finally:
                in_store += time.perf_counter() - start if call is not Future.result else 0.0
                waited += time.perf_counter() - start if main_thread else 0.0

        return run

    patches = [
        patch.object(Writer, "create", timed(Writer.create, main_thread=True)),
        patch.object(Writer, "commit", timed(Writer.commit, main_thread=False)),
        patch.object(Writer, "finish", timed(Writer.finish, main_thread=True)),
        patch.object(Future, "result", timed(Future.result, main_thread=True)),
    ]
    with ExitStack() as stack:
        for timer in patches:
            stack.enter_context(timer)
        start = time.perf_counter()
        run_build(plan, folder / "built.zarr", model=loaded)
        whole = time.perf_counter() - start
    return {
        "share of a build in the store": in_store / whole,
        "share of a build that waits for it": waited / whole,
    }


if __name__ == "__main__":
    main()
