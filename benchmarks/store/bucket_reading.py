"""How fast is a store in a bucket read, next to plain ranges of obstore and to zarr-python over it?

One layer of all rows, in turns, out of SeaweedFS on this machine (or wherever --address and the AWS
variables lead). Plain obstore asks for the same ranges with 16 threads and copies them into one
array. Opening is counted in requests, of a store of 1,000 shards.
"""

import itertools
import os
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import numpy as np

from actcache.store.array import Residuals
from actcache.store.layout import shard_name
from actcache.store.schema import RowArray
from actcache.store.storage.protocol import Storage
from actcache.store.storage.s3 import S3Storage
from actcache.store.store import open_store
from actcache.store.writing.contents import StoreContents
from actcache.store.writing.writer import Writer
from benchmarks.support.turns import arguments, in_turns, ratio, report

NAME = "resid_post/prompt"
N_THREADS = 16


def main(argv: Sequence[str] | None = None) -> None:
    parser = arguments(__doc__)
    parser.add_argument("--n", type=int, default=2048, help="rows (default 2048)")
    parser.add_argument("--layers", type=int, default=33, help="default 33")
    parser.add_argument("--d-model", type=int, default=4096, help="default 4096")
    parser.add_argument("--shards", type=int, default=1000, help="of the store that is opened")
    parser.add_argument("--address", help="s3://BUCKET/PREFIX to write to (default: SeaweedFS)")
    parser.add_argument("--quick", action="store_true", help="small stores: does it run at all?")
    args = parser.parse_args(argv)
    if args.quick:
        args.n, args.layers, args.d_model, args.shards, args.repeats = 64, 3, 64, 10, 1
    with _bucket(args.address) as address:
        figures = _one_layer(f"{address}/wide.zarr", args) | _opening(f"{address}/long.zarr", args)
    size = f"{args.n} x {args.layers} x {args.d_model} float16"
    report("store.bucket_reading", figures, about={"store": size, "repeats": args.repeats})


def _one_layer(address: str, args: Any) -> dict[str, float]:
    array = RowArray(NAME, args.layers, args.d_model, "float16")
    values = np.random.default_rng(0).normal(size=(args.n, args.layers, args.d_model))
    _write(S3Storage(address), array, values.astype(np.float16), shard_rows=None)
    layers = itertools.cycle(range(args.layers))
    residuals = open_store(address).array(NAME)
    checked = open_store(address).checked().array(NAME)
    plain, arrays = _plain(address, array, residuals), _zarr(address)
    assert np.array_equal(plain(1), residuals.layer(1))
    assert np.array_equal(arrays(1), residuals.layer(1))
    for layer in range(args.layers):  # so that the server has all of it in memory
        plain(layer)
    variants: dict[str, Callable[[int], object]] = {
        "actcache": residuals.layer,
        "checked": checked.layer,
        "plain obstore": plain,
        "zarr-python over obstore": arrays,
    }
    pairs = (
        ("actcache", "plain obstore"),
        ("checked", "plain obstore"),
        ("actcache", "zarr-python over obstore"),
    )
    # All pairs in each round: one that was measured first, as a whole, read 1.3 where the same one
    # measured last read 0.8.
    took = in_turns(
        {
            f"{name} of {reader} / {other}": lambda name=name: variants[name](next(layers))  # type: ignore[misc]  # mypy does not infer defaults
            for reader, other in pairs
            for name in (reader, other)
        },
        repeats=args.repeats,
    )
    figures: dict[str, float] = {}
    for reader, other in pairs:
        first, second = (f"{name} of {reader} / {other}" for name in (reader, other))
        figures[f"one layer, {reader} / {other}"] = ratio(took, first, second)
        if other == "plain obstore":
            n_bytes = args.n * args.d_model * 2
            figures[f"one layer, {reader}: GB/s at best"] = n_bytes / 1e9 / min(took[first])
    return figures


def _plain(address: str, array: RowArray, residuals: Residuals) -> Callable[[int], np.ndarray]:
    """Read one layer with obstore alone: the same ranges, 16 threads, one array."""
    store = _obstore(address)
    n, size = len(residuals), residuals._shard_rows
    row_bytes = 2 * array.width

    def read(layer: int) -> np.ndarray:
        values = np.empty((n, array.width), np.float16)

        def copy(shard: int) -> None:
            rows = min(size, n - shard * size)
            start = layer * size * row_bytes
            raw = store.get_range(shard_name(array, shard), start=start, length=rows * row_bytes)
            block = np.frombuffer(raw, np.float16).reshape(rows, array.width)
            values[shard * size : shard * size + rows] = block

        with ThreadPoolExecutor(N_THREADS) as pool:
            list(pool.map(copy, range(-(-n // size))))
        return values

    return read


def _zarr(address: str) -> Callable[[int], np.ndarray]:
    import zarr
    from zarr.storage import ObjectStore

    array: Any = zarr.open_group(ObjectStore(_obstore(address), read_only=True), mode="r")[NAME]
    return lambda layer: np.asarray(array[:, layer])


def _obstore(address: str) -> Any:
    from obstore.store import S3Store

    bucket, _, prefix = address.removeprefix("s3://").partition("/")
    endpoint = os.environ.get("AWS_ENDPOINT_URL")
    http: Any = {"allow_http": bool(endpoint and endpoint.startswith("http:"))}
    return S3Store(bucket, prefix=prefix, endpoint=endpoint, client_options=http)


def _opening(address: str, args: Any) -> dict[str, float]:
    array = RowArray(NAME, 8, 8, "float16")
    values = np.zeros((args.shards, 8, 8), np.float16)
    _write(S3Storage(address), array, values, shard_rows=1)
    counted = CountingStorage(address)
    open_store(counted)
    seconds = []
    for _ in range(args.repeats):
        start = time.perf_counter()
        open_store(address)
        seconds.append(time.perf_counter() - start)
    return {
        "opening: shards": args.shards,
        "opening: LISTs (a request for each 1,000 objects)": counted.asked["list"],
        "opening: objects read, 16 at a time": counted.asked["read"],
        "opening: seconds": min(seconds),
    }


class CountingStorage(S3Storage):
    """Counts its requests by what they do."""

    def __init__(self, address: str):
        super().__init__(address)
        self.asked: Counter[str] = Counter()

    def _ask(self, name: str, verb: str, request: Any) -> Any:
        self.asked[verb] += 1
        return super()._ask(name, verb, request)


def _write(
    storage: Storage, array: RowArray, values: np.ndarray, *, shard_rows: int | None
) -> None:
    n = len(values)
    contents = StoreContents(
        kind="residuals",
        n=n,
        arrays=[array],
        columns={"id": [str(i) for i in range(n)]},
        config={},
        provenance={},
        shard_rows=shard_rows,
    )
    with Writer.create(storage, contents) as writer:
        while writer.committed < n:
            writer.commit({array.name: values[writer.next_rows]})
        writer.finish()


@contextmanager
def _bucket(address: str | None) -> Iterator[str]:
    """An address to write below; a server of its own if none is given."""
    if address is not None:
        yield f"{address.rstrip('/')}/{time.time_ns()}"
        return
    from tests.support import seaweedfs

    start: Any = seaweedfs.SeaweedFS
    with tempfile.TemporaryDirectory() as folder, start(folder) as server:
        os.environ.update(server.environment)
        yield f"s3://{seaweedfs.BUCKET}"


if __name__ == "__main__":
    main()
