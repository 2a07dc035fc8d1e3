"""Do memory and cost a row depend on how many rows there are?

Build, sweep and moments (directions) at several n, each in its own process, on a model with small
weights so that growth shows. The floor is the same process after loading the model and running one
batch (`benchmarks.support.one_stage`). Two things must grow: the rows' texts and tokens, measured
separately, and the shard being filled, up to n = 512 (or fewer, where rows are wide). Resident
memory includes mapped files of the store, which the kernel drops when it needs room; anonymous
memory does not. The slope is a least-squares fit over the n of at least one shard.
"""

import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.support.models import saved_gpt2, saved_rows
from benchmarks.support.one_stage import STAGES
from benchmarks.support.turns import arguments, report


def measured(
    stage: str, ns: Sequence[int], settings: Mapping[str, Any], folder: Path
) -> list[dict[str, float]]:
    """Run `one_stage` at each n. Stores stay in `folder` for the stages that read them."""
    measurements = []
    for n in ns:
        store = folder / f"{n}.zarr"
        args = {**settings, "stage": stage, "n": n, "store": str(store)}
        command = [sys.executable, "-m", "benchmarks.support.one_stage", json.dumps(args)]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        measurements.append(json.loads(done.stdout.splitlines()[-1]))
    return measurements


def slope(ns: Sequence[int], values: Sequence[float], *, least: float = 0) -> float:
    """Fit the slope of `values` per thousand rows, over the `ns` of at least `least`.

    All `ns` count where fewer than two are that large.
    """
    x, y = np.asarray(ns, np.float64), np.asarray(values, np.float64)
    large = x >= least
    if large.sum() >= 2:
        x, y = x[large], y[large]
    return float(1000 * np.polyfit(x, y, 1)[0])


def figures_of(
    stage: str, ns: Sequence[int], measurements: Sequence[Mapping[str, float]]
) -> dict[str, Any]:
    """Return the figures of one stage, in megabytes and seconds."""
    figures: dict[str, Any] = {}
    for kind, title in (("", "resident"), (" anonymous", "anonymous")):
        over = [m[f"peak{kind}"] - m[f"floor{kind}"] for m in measurements]
        figures[f"{stage}: floor, {title} MB"] = measurements[0][f"floor{kind}"]
        for n, megabytes in zip(ns, over, strict=True):
            figures[f"{stage}: {title} MB over the floor at n = {n}"] = megabytes
        least = max(m["shard rows"] for m in measurements)
        figures[f"{stage}: {title} MB a thousand rows"] = slope(ns, over, least=least)
    rows = [m["rows"] for m in measurements]
    figures[f"{stage}: of these, texts and tokens, MB a thousand rows"] = slope(ns, rows)
    figures[f"{stage}: shard rows"] = int(measurements[-1]["shard rows"])
    speed = [n / m["seconds"] for n, m in zip(ns, measurements, strict=True)]
    for n, rows_a_second in zip(ns, speed, strict=True):
        figures[f"{stage}: rows a second at n = {n}"] = rows_a_second
    figures[f"{stage}: seconds a row at n = {ns[-1]} / at n = {ns[0]}"] = speed[0] / speed[-1]
    return figures


def main(
    argv: Sequence[str] | None = None,
    *,
    measure: Callable[..., list[dict[str, float]]] = measured,
) -> None:
    parser = arguments(__doc__)
    add = parser.add_argument
    add("--ns", default="250,1000,4000", help="rows (default %(default)s)")
    add("--stages", default=",".join(STAGES), help="default %(default)s; build always runs")
    add("--model", help="folder; default: a random GPT-2 of 4 layers, d 256")
    add("--data", nargs="*", default=[], help="rows for --model; --ns counts those of each file")
    add("--tokens", type=int, default=64, help="tokens of a prompt, about (default 64)")
    add("--batch-tokens", type=int, default=4096)
    add("--quick", action="store_true", help="a tiny model and few rows: does it run at all?")
    args = parser.parse_args(argv)
    ns = [40, 80] if args.quick else [int(n) for n in args.ns.split(",")]
    with tempfile.TemporaryDirectory() as folder:
        model, data, template, vocab = args.model, args.data, "auto", 256 if args.quick else 4096
        if model is None:
            shape = {"layers": 2, "d_model": 32, "heads": 2} if args.quick else {}
            shape = shape or {"layers": 4, "d_model": 256, "heads": 4}
            model = saved_gpt2(Path(folder, "model"), vocab=vocab, **shape)
            rows = Path(folder, "rows.jsonl")
            data = [saved_rows(rows, max(ns), tokens=args.tokens, vocab=vocab)]
            template = "none"
        settings = {
            "model": model,
            "data": data,
            "template": template,
            "batch_tokens": args.batch_tokens,
            "floor_rows": min(64, min(ns)),
            "threads": args.threads,
        }
        figures: dict[str, Any] = {}
        for stage in STAGES:
            if stage == "build" or stage in args.stages.split(","):
                figures |= figures_of(stage, ns, measure(stage, ns, settings, Path(folder)))
    about = {"model": Path(model).name if args.model else "random GPT-2", "tokens": args.tokens}
    report("memory", figures, about={**about, "batch tokens": args.batch_tokens})


if __name__ == "__main__":
    main()
