"""What does writing a store into a bucket cost beside plain PUTs of the same bytes with obstore?

In turns, into SeaweedFS on this machine (or wherever --address and the AWS variables lead), one
object after another, each variant under a name of its own. A build computes checksums, reads its
receipts again and appends records; `put_if_absent` is its create-only write alone.
"""

import itertools
import os
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

from actcache.store.schema import RowArray
from actcache.store.storage import MemoryStorage, S3Storage, Storage
from actcache.store.writing.contents import StoreContents
from actcache.store.writing.writer import Writer
from benchmarks.support.turns import arguments, in_turns, ratio, report

POSITIONS = ("positive", "negative")


def main(argv: Sequence[str] | None = None) -> None:
    parser = arguments(__doc__)
    parser.add_argument("--shards", type=int, default=3, help="default 3")
    parser.add_argument("--shard-rows", type=int, default=90, help="default 90: 24 MB an object")
    parser.add_argument("--layers", type=int, default=33, help="default 33")
    parser.add_argument("--d-model", type=int, default=4096, help="default 4096")
    parser.add_argument("--address", help="s3://BUCKET/PREFIX to write to (default: SeaweedFS)")
    parser.add_argument("--quick", action="store_true", help="small objects: does it run at all?")
    args = parser.parse_args(argv)
    if args.quick:
        args.shards, args.shard_rows, args.layers, args.d_model, args.repeats = 2, 4, 2, 64, 1
    with _bucket(args.address) as address:
        figures, n_bytes = _measure(address, args)
    about = {"objects": args.shards * len(POSITIONS), "bytes": n_bytes, "repeats": args.repeats}
    report("store.bucket", figures, about=about)


def _measure(address: str, args: Any) -> tuple[dict[str, float], int]:
    contents, values = _store(args)
    memory = MemoryStorage()
    _build(memory, contents, values)
    folders = tuple(f"{array}/c" for array in values)
    shards = {name: raw for name, raw in memory.objects.items() if name.startswith(folders)}
    n_bytes = sum(map(len, shards.values()))
    turns = itertools.count()

    def build() -> None:
        _build(S3Storage(f"{address}/build-{next(turns)}"), contents, values)

    def put_if_absent() -> None:
        storage = S3Storage(f"{address}/created-{next(turns)}")
        for name, raw in shards.items():
            assert storage.put_if_absent(name, [raw])

    plain = _plain_store(address)

    def put() -> None:
        turn = next(turns)
        for name, raw in shards.items():
            plain.put(f"plain-{turn}/{name}", raw, use_multipart=False)

    took = in_turns(
        {"build": build, "put_if_absent": put_if_absent, "plain PUT": put}, repeats=args.repeats
    )
    return {
        "build: bytes/s beside plain PUT": ratio(took, "plain PUT", "build"),
        "put_if_absent: bytes/s beside plain PUT": ratio(took, "plain PUT", "put_if_absent"),
        "plain PUT: MB/s": n_bytes / 1e6 / min(took["plain PUT"]),
    }, n_bytes


def _store(args: Any) -> tuple[StoreContents, dict[str, np.ndarray]]:
    """Contents of a store, and the values of its arrays as a model leaves them: by layer."""
    n = args.shards * args.shard_rows
    arrays = [
        RowArray(f"resid_post/{position}", args.layers, args.d_model, "float16")
        for position in POSITIONS
    ]
    contents = StoreContents(
        kind="residuals",
        n=n,
        arrays=arrays,
        columns={"id": [str(i) for i in range(n)]},
        config={},
        provenance={},
        shard_rows=args.shard_rows,
    )
    rng = np.random.default_rng(0)
    values = rng.normal(size=(args.layers, n, args.d_model)).astype(np.float16).swapaxes(0, 1)
    return contents, {array.name: values for array in arrays}


def _build(storage: Storage, contents: StoreContents, values: dict[str, np.ndarray]) -> None:
    with Writer.create(storage, contents) as writer:
        while writer.committed < writer.n:
            writer.commit({name: value[writer.next_rows] for name, value in values.items()})
        writer.finish()


def _plain_store(address: str) -> Any:
    from obstore.store import S3Store

    return S3Store.from_url(address, client_options={"allow_http": True})


@contextmanager
def _bucket(address: str | None) -> Iterator[str]:
    """An address to write below; a server of its own if none is given."""
    if address is not None:
        yield f"{address.rstrip('/')}/{time.time_ns()}"
        return
    from tests.support.seaweedfs import BUCKET, SeaweedFS

    with tempfile.TemporaryDirectory() as folder, SeaweedFS(folder) as server:  # type: ignore[no-untyped-call]
        os.environ.update(server.environment)
        yield f"s3://{BUCKET}/benchmark"


if __name__ == "__main__":
    main()
