"""How much less CPU does `analyze` take than in an older checkout, for the same tables?

Runs `analyze STORE` through both checkouts in turns, each in a process of one thread, and prints
the median over rounds of old / new CPU seconds: of the whole command, and of the passes of its
sweeps alone. Then the largest difference between the numbers that both summaries have, and the
intervals of random directions, which the new code reads on part of the samples.
"""

import json
import os
import statistics
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from benchmarks.compare_outputs import numbers
from benchmarks.counts import python_of
from benchmarks.support.turns import arguments, report

ROOT = Path(__file__).parents[2]

STAGE = """
import json, sys, time
import torch
from actcache.analysis.pipeline import analyze
try:
    from actcache.analysis.sweep import grid as run
except ImportError:  # before sweeps could be shared among workers
    from actcache.analysis.sweep import run
torch.set_num_threads(1)
spent, run_batches = [], run.run_batches
def timed(*args, **settings):
    start = time.process_time()
    run_batches(*args, **settings)
    spent.append(time.process_time() - start)
run.run_batches = timed
start = time.process_time()
analyze(sys.argv[1], sys.argv[2], overwrite=True, device="cpu", **json.loads(sys.argv[3]))
print(json.dumps({"whole": time.process_time() - start, "sweeps": sum(spent)}))
"""
"""What runs in either checkout: only names that both have."""


def measured(checkout: Path, store: Path, out: Path, settings: dict[str, Any]) -> dict[str, float]:
    """Run one analysis; CPU seconds of the whole and of its sweeps."""
    threads = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
    done = subprocess.run(
        [python_of(checkout), "-P", "-c", STAGE, str(store), str(out), json.dumps(settings)],
        env=os.environ | threads | {"PYTHONPATH": str(checkout)},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    seconds: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return seconds


def controls(summary: dict[str, Any]) -> Iterator[tuple[float, float]]:
    """The effect of each behavior of base prompts, and the width of its control's interval."""
    for name, scores in summary["sweep"]["behaviors"].items():
        if "@" not in name:
            place = summary["sweep"]["layers"].index(scores["fixed_layer"])
            interval = scores["control"][0]["by_layer"][place]
            yield scores["fixed"]["slope"]["value"], interval["high"] - interval["low"]


def main(argv: Sequence[str] | None = None) -> None:
    parser = arguments(__doc__)
    parser.add_argument("old", type=Path, help="the older checkout")
    parser.add_argument("store", type=Path, help="a store of pairs that build wrote")
    parser.add_argument("--settings", default="{}", help="fields of AnalyzeConfig, as JSON")
    parser.set_defaults(repeats=2)
    args = parser.parse_args(argv)
    settings, seconds, summaries = json.loads(args.settings), [], {}
    with TemporaryDirectory() as folder:
        for _ in range(args.repeats):
            round_ = {}
            for name, checkout in (("old", args.old), ("new", ROOT)):
                out = Path(folder) / name
                round_[name] = measured(checkout.absolute(), args.store.absolute(), out, settings)
                summaries[name] = json.loads((out / "summary.json").read_text("utf-8"))
            seconds.append(round_)
    figures: dict[str, Any] = {}
    for part in ("whole", "sweeps"):
        ratios = [cpu_times["old"][part] / cpu_times["new"][part] for cpu_times in seconds]
        figures[f"{part}, old / new"] = statistics.median(ratios)
        for name in ("old", "new"):
            middle = statistics.median(cpu_times[name][part] for cpu_times in seconds)
            figures[f"{part}, CPU seconds, {name}"] = middle
    parts = ("sweep", "predictors")
    old, new = (
        dict(numbers({part: summaries[name][part] for part in parts})) for name in ("old", "new")
    )
    compared = [name for name in old if name in new and "/fixed/slope/value" in name]
    figures["slopes of fixed layers compared"] = len(compared)
    for kind, of_control in (("behaviors' and learned", False), ("random", True)):
        figures[f"largest difference, {kind} vectors"] = max(
            (abs(old[x] - new[x]) for x in compared if ("random" in x) == of_control), default=0.0
        )
    for effect, width in controls(summaries["new"]):
        figures[f"interval of random directions beside an effect of {effect:.3g}"] = width
    report("one sweep", figures, about={"store": str(args.store), "settings": settings})


if __name__ == "__main__":
    main()
