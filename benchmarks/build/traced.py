"""What of a build's memory grows with the number of rows?

Python's own allocations, traced while two builds of different n run in one process on a random GPT-2:
the peak of each, and what is still alive when the last shard is written, by the file that made it.
Tokens are the tuples that `render` keeps (and what the tokenizer makes, were it kept); texts are what
JSON's reader makes, and the samples made of them. Resident memory grows by more, since it counts the store's mapped pages.
"""

import gc
import tempfile
import tracemalloc
from collections.abc import Sequence
from pathlib import Path
from unittest.mock import patch

import actcache
from actcache.store.writing.writer import Writer
from benchmarks.support.models import saved_gpt2, saved_rows
from benchmarks.support.turns import arguments, report

SOURCES = {
    "tokens": ("tokenization_utils_tokenizers.py", "prompts/render.py"),
    "texts": (
        *("json/decoder.py", "data/readers.py", "data/formats.py", "data/samples.py"),
        "dataclasses.py",  # samples, once more with their splits
    ),
    "columns": ("store/schema.py", "build/provenance.py"),
}


def main(argv: Sequence[str] | None = None) -> None:
    parser = arguments(__doc__)
    parser.add_argument("--tokens", type=int, default=64, help="of a prompt, about (default 64)")
    parser.add_argument("--quick", action="store_true", help="few rows: does it run at all?")
    args = parser.parse_args(argv)
    small, large = (100, 200) if args.quick else (1000, 3000)
    with tempfile.TemporaryDirectory() as name:
        figures = measured(Path(name), small, large, tokens=args.tokens)
    report("traced memory", figures, about={"rows": [small, large], "tokens": args.tokens})


def measured(folder: Path, small: int, large: int, *, tokens: int) -> dict[str, float]:
    """MB, and what a thousand rows more add to it."""
    model = saved_gpt2(folder / "model", layers=4, d_model=64, heads=4, vocab=2000)
    peaks, alive = {}, {}
    finish = Writer.finish

    def snapshot_and_finish(writer: Writer, *args: object) -> None:
        gc.collect()
        alive[writer.n] = tracemalloc.take_snapshot()
        finish(writer, *args)

    for n in (10, small, large):  # what is imported and cached once is made by the first
        rows = saved_rows(folder / f"{n}.jsonl", n, tokens=tokens, vocab=2000)
        tracemalloc.start()
        with patch.object(Writer, "finish", snapshot_and_finish):
            actcache.build_store(rows, folder / f"{n}.zarr", model=model, dtype="float32")
        peaks[n] = tracemalloc.get_traced_memory()[1] / 1e6
        tracemalloc.stop()
    thousands = (large - small) / 1000
    growth = alive[large].compare_to(alive[small], "filename")
    by_source = {
        name: sum(
            line.size_diff
            for line in growth
            if line.traceback[0].filename.replace("\\", "/").endswith(files)
        )
        for name, files in SOURCES.items()
    }
    by_source["anything else"] = sum(line.size_diff for line in growth) - sum(by_source.values())
    return {
        f"peak at {small} rows, MB": peaks[small],
        "peak, MB per 1,000 rows more": (peaks[large] - peaks[small]) / thousands,
        **{f"{name}, MB per 1,000 rows": x / 1e6 / thousands for name, x in by_source.items()},
    }


if __name__ == "__main__":
    main()
