"""What do checksums on first read cost an analysis? Directions of a store with and without them.

From the page cache, in turns, each time with a store that was just opened: what is measured is the
checksum, not the disk. `analyze --no-check` leaves it out.
"""

import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from actcache.analysis.directions.difference_of_means import pair_directions
from actcache.store.schema import RowArray
from actcache.store.store import open_store
from actcache.store.writing.contents import StoreContents
from actcache.store.writing.writer import Writer
from benchmarks.support.turns import arguments, in_turns, ratio, report

DTYPES = ("bfloat16", "float16", "float32")


def main(argv: Sequence[str] | None = None) -> None:
    parser = arguments(__doc__)
    parser.add_argument("--n", type=int, default=1024, help="rows (default 1024)")
    parser.add_argument("--layers", type=int, default=24, help="default 24")
    parser.add_argument("--d-model", type=int, default=1024, help="default 1024")
    parser.add_argument("--folder", help="default: the temporary one")
    parser.add_argument("--quick", action="store_true", help="a small store: does it run at all?")
    args = parser.parse_args(argv)
    if args.quick:
        args.n, args.layers, args.d_model, args.repeats = 64, 2, 64, 1
    figures: dict[str, float] = {}
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        for dtype in DTYPES:
            path = Path(folder) / f"{dtype}.zarr"
            n_bytes = _build(path, dtype, args.n, args.layers, args.d_model)
            took = in_turns(
                {
                    name: lambda path=path, check=check: pair_directions(  # type: ignore[misc]  # mypy does not infer defaults
                        open_store(path, check=check), rows=np.ones(args.n, np.bool_)
                    )
                    for name, check in (("plain", False), ("checked", True))
                },
                repeats=args.repeats,
            )
            figures[f"{dtype}: directions, checked / plain"] = ratio(took, "checked", "plain")
            extra = min(took["checked"]) - min(took["plain"])
            figures[f"{dtype}: ms a GB"] = 1e3 * extra / (n_bytes / 1e9)
    size = f"{args.n} x {args.layers} x {args.d_model}, 2 positions"
    report("store.checked", figures, about={"store": size, "repeats": args.repeats})


def _build(path: Path, dtype: str, n: int, n_layers: int, d_model: int) -> int:
    """Write a store of pairs; its bytes."""
    arrays = [
        RowArray(f"resid_post/{position}", n_layers, d_model, dtype)  # type: ignore[arg-type]  # one of DTYPES
        for position in ("positive", "negative")
    ]
    words = {"behavior": "x", "variant": "base", "split": "train", "label": ""}
    contents = StoreContents(
        kind="residuals",
        n=n,
        arrays=arrays,
        columns={"id": [str(i) for i in range(n)], **{k: [v] * n for k, v in words.items()}},
        config={},
        provenance={"model": {"n_layers": n_layers}},
    )
    values = np.random.default_rng(0).normal(size=(n, n_layers, d_model)).astype(np.float32)
    stored = (values.view(np.uint32) >> 16).astype(np.uint16)
    stored = stored if dtype == "bfloat16" else values.astype(dtype)
    with Writer.create(path, contents) as writer:
        while writer.committed < n:
            writer.commit({array.name: stored[writer.next_rows] for array in arrays})
        writer.finish()
    return n * sum(array.row_bytes for array in arrays)


if __name__ == "__main__":
    main()
