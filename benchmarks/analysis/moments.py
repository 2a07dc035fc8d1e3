"""What do means, scatter and directions of all layers cost over reading the store alone?

The floors read the same batches of the same store from the page cache: `touch` reads every byte,
`convert` makes float32 of it, which any computation has to. Both run on one thread, as a loop in
NumPy does. Labels alternate, or all rows are one class. `store, two classes` are the moments of its
groups of 64 shards, merged, over those of one pass through the same batches.
"""

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from actcache.analysis.directions.difference_of_means import directions_of_moments
from actcache.analysis.directions.shard_groups import BATCH_ROWS, store_moments
from actcache.analysis.stats.float16 import to_float32
from actcache.analysis.stats.moments import class_moments
from actcache.store.schema import RowArray
from actcache.store.store import open_store
from actcache.store.writing.contents import StoreContents
from actcache.store.writing.writer import Writer
from benchmarks.support.turns import arguments, in_turns, ratio, report


def main(argv: Sequence[str] | None = None) -> None:
    parser = arguments(__doc__)
    parser.add_argument("--n", type=int, default=1024, help="rows (default 1024)")
    parser.add_argument("--layers", type=int, default=32, help="default 32")
    parser.add_argument("--d-model", type=int, default=2048, help="default 2048")
    parser.add_argument("--dtype", default="float32", help="float16, bfloat16 or float32")
    parser.add_argument("--shard-rows", type=int, help="default: as many as a build chooses")
    parser.add_argument("--folder", help="on the disk in question; default: the temporary one")
    parser.add_argument("--quick", action="store_true", help="a small store: does it run at all?")
    args = parser.parse_args(argv)
    if args.quick:
        args.n, args.layers, args.d_model, args.repeats = 128, 4, 64, 1
    array = RowArray("resid_post/prompt", args.layers, args.d_model, args.dtype)
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        figures = measured(
            Path(folder) / "a.zarr",
            args.n,
            array,
            shard_rows=args.shard_rows,
            threads=args.threads,
            repeats=args.repeats,
        )
    size = f"{args.n} x {args.layers} x {args.d_model} {args.dtype}"
    report("moments", figures, about={"store": size, "repeats": args.repeats})


def measured(
    path: Path, n: int, array: RowArray, *, shard_rows: int | None, threads: int, repeats: int
) -> dict[str, float]:
    fill(path, n, array, shard_rows=shard_rows)
    store = open_store(path)
    resid = store.array(array.name)
    plain = resid.bits if array.dtype == "bfloat16" else resid
    alternating = np.arange(n) % 2

    def touch() -> int:
        return max(int(x.swapaxes(0, 1).view(np.uint16).max()) for _, x in plain.batches())

    def convert() -> None:
        for _, x in resid.batches():
            for layer in x.swapaxes(0, 1):
                if layer.dtype == np.float16:
                    to_float32(layer)
                else:
                    np.array(layer)

    def moments(
        n_classes: int, with_threads: int | None, rows: int | None = None
    ) -> Callable[[], object]:
        def work() -> object:
            batches = ((x, alternating[i] % n_classes) for i, x in resid.batches(rows))
            sums = class_moments(batches, n_classes, threads=with_threads)
            return directions_of_moments(sums, positive=1, negative=0) if n_classes == 2 else sums

        return work

    variants: dict[str, Callable[[], object]] = {
        "touch": touch,
        "convert": convert,
        "one class": moments(1, 1),
        "two classes": moments(2, 1),
        f"one class, {threads} threads": moments(1, threads),
        f"two classes, {threads} threads": moments(2, threads),
        "one pass, two classes": moments(2, None, BATCH_ROWS),
        "store, two classes": lambda: directions_of_moments(
            store_moments(store, {"prompt": alternating}, 2), positive=1, negative=0
        ),
    }
    took = in_turns(variants, repeats=repeats)
    figures = {
        f"{name} / {floor}": ratio(took, name, floor)
        for name in list(variants)[2:6]
        for floor in ("touch", "convert")
    }
    figures["store / one pass"] = ratio(took, "store, two classes", "one pass, two classes")
    figures["convert / touch"] = ratio(took, "convert", "touch")
    figures["touch GB/s"] = n * array.row_bytes / 1e9 / min(took["touch"])
    return figures


def fill(path: Path, n: int, array: RowArray, *, shard_rows: int | None = None) -> None:
    rng = np.random.default_rng(0)
    values = rng.normal(size=(array.n_layers, 512, array.width)).astype(np.float32)
    bits = (values.view(np.uint32) >> 16).astype(np.uint16)
    block = (bits if array.dtype == "bfloat16" else values.astype(array.dtype)).swapaxes(0, 1)
    contents = StoreContents(
        kind="residuals",
        n=n,
        arrays=[array],
        columns={"id": [str(i) for i in range(n)]},
        config={},
        provenance={},
        shard_rows=shard_rows,
    )
    with Writer.create(path, contents) as writer:
        while writer.committed < n:
            rows = writer.next_rows
            writer.commit({array.name: block[: rows.stop - rows.start]})
        writer.finish()


if __name__ == "__main__":
    main()
