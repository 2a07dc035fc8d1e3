"""Is the store as fast as the disk? Writing against a raw file, reading against `np.memmap`.

The floors hold the same bytes: one file written front to back and synced once; one sample-major
memory map. Ours syncs and checksums every shard. Reading is from the page cache, so it shows what
the store costs, not the disk; the map is layer-major for one layer and sample-major for the rest,
each the best that a plain file can be for that question.
"""

import os
import shutil
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from actcache.schema import RowArray
from actcache.store import open_store, verify
from actcache.writer import Writer
from benchmarks.turns import arguments, in_turns, ratio, report

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
    args = parser.parse_args(argv)
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        figures = measured(
            Path(folder), args.n, args.layers, args.d_model, args.dtype, args.repeats
        )
    size = f"{args.n} x {args.layers} x {args.d_model} {args.dtype}, {len(POSITIONS)} positions"
    report("store", figures, about={"store": size, "repeats": args.repeats})


def measured(
    folder: Path, n: int, n_layers: int, d_model: int, dtype: str, repeats: int
) -> dict[str, float]:
    arrays = [RowArray(f"resid_post/{name}", n_layers, d_model, dtype) for name in POSITIONS]  # type: ignore[arg-type]  # argparse gives a plain str; RowArray checks it
    values = np.random.default_rng(0).normal(size=(n_layers, 512, d_model)).astype(np.float32)
    bits = (values.view(np.uint32) >> 16).astype(np.uint16)
    block = (bits if dtype == "bfloat16" else values.astype(dtype)).swapaxes(0, 1)
    path, raw = folder / "a.zarr", folder / "raw"

    def write() -> None:
        columns = {"id": [str(i) for i in range(n)]}
        shutil.rmtree(path, ignore_errors=True)
        with Writer.create(
            path, kind="residuals", n=n, arrays=arrays, columns=columns, config={}, provenance={}
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
            lambda: plain.layer(n_layers // 2).copy(),
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
    for name, (ours, memmap) in questions.items():
        took = in_turns({"ours": ours, "memmap": memmap}, repeats=4 * repeats)
        figures[f"{name}: speed / np.memmap"] = ratio(took, "memmap", "ours")
    if dtype == "bfloat16":
        took = in_turns({"float32": lambda: [x for _, x in resid.batches()]}, repeats=repeats)
        figures["stream as float32, GB/s on disk"] = (
            n * arrays[0].row_bytes / 1e9 / min(took["float32"])
        )
    took = in_turns(
        {"open": lambda: open_store(path), "verify": lambda: verify(path)}, repeats=repeats
    )
    figures["open, ms"] = 1e3 * min(took["open"])
    figures["verify GB/s"] = n_bytes / 1e9 / min(took["verify"])
    return figures


if __name__ == "__main__":
    main()
