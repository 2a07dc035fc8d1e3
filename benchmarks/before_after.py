"""Is anything slower than in an older checkout?

Runs the same work through both checkouts in turns (old, new, old, new, …), one thread, and prints
the median over rounds of new / old within a round, of CPU and of wall seconds. All work goes through
the command line, or through what both versions have (`open_store`, `resid`, the writer), in
processes whose `actcache` is that of the checkout: its `.venv/bin/python` if it has one. Models
and rows are this checkout's for both. CPU seconds are those to believe on a busy machine.
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from benchmarks.counts import python_of
from benchmarks.support.models import saved_gpt2, saved_rows

ROOT = Path(__file__).parents[1]
DEMO = ROOT / "actcache" / "demo"
STORE_WORK = ROOT / "benchmarks" / "support" / "store_work.py"
SHAPE = {"layers": 4, "d_model": 128, "heads": 4, "vocab": 1024}

Seconds = tuple[float, float]
"""CPU and wall."""


@dataclass(frozen=True)
class Checkout:
    """One of the two versions, and where its work goes."""

    name: str
    source: Path
    work: Path

    def run(self, *arguments: str) -> tuple[Seconds, str]:
        """Run this checkout's Python; return what it took, and its standard output."""
        threads = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
        before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
        done = subprocess.run(
            [python_of(self.source), "-P", *arguments],
            cwd=self.work,
            env=os.environ | threads | {"PYTHONPATH": str(self.source)},
            capture_output=True,
            text=True,
            check=False,
        )
        wall, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
        if done.returncode:
            raise SystemExit(f"{self.name}: {' '.join(arguments)} failed:\n{done.stderr[-2000:]}")
        cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        return (cpu, wall), done.stdout


def measurements(inputs: Path, *, quick: bool) -> dict[str, Callable[[Checkout], Seconds]]:
    """Return what is measured, in order: later work reads the stores of earlier work."""
    demo_rows = [str(path) for path in sorted((DEMO / "rows").glob("*.jsonl"))]
    limit = "12" if quick else "200"

    def command(*arguments: str) -> Callable[[Checkout], Seconds]:
        return lambda checkout: checkout.run("-m", "actcache", *arguments)[0]

    def build(rows: Sequence[str], model: Path, store: str, *flags: str) -> tuple[str, ...]:
        return ("build", *rows, "--model", str(model), "-o", store, "--overwrite", *flags)

    def analyze(store: str, out: str, *flags: str) -> tuple[str, ...]:
        return ("analyze", store, "-o", out, "--overwrite", *flags)

    gpt2 = ([str(inputs / "rows.jsonl")], inputs / "gpt2", "gpt2.zarr", "--template", "none")
    works = {
        "import actcache": lambda checkout: checkout.run("-c", "import actcache")[0],
        "actcache --help": command("--help"),
        "build: demo, one behavior, 112 rows": command(
            *build(demo_rows[:1], DEMO / "model", "demo.zarr")
        ),
        f"build: random GPT-2, {limit} rows": command(*build(*gpt2, "--limit", limit)),
        "analyze: moments and directions, 1024 × 16 × 1024": command(
            *analyze("synthetic.zarr", "moments", "--stages", "vectors")
        ),
        f"analyze: sweep, random GPT-2, {limit} rows": command(
            *analyze("gpt2.zarr", "gpt2-out", "--stages", "vectors,sweep", "--controls", "1")
        ),
        "analyze: all stages, demo, one behavior": command(
            *analyze("demo.zarr", "demo-out", "--seeds", "2", "--draws", "300")
        ),
    }
    if quick:
        works.pop("analyze: all stages, demo, one behavior")
    return works


def store_seconds(checkout: Checkout) -> dict[str, Seconds]:
    """Measure writing a store, and reading it, inside a process of the checkout."""
    path = str(checkout.work / "synthetic.zarr")
    figures: dict[str, Seconds] = {}
    for kind in ("write", "read"):
        printed = checkout.run(str(STORE_WORK), kind, path)[1]
        figures |= {name: (cpu, wall) for name, (cpu, wall) in json.loads(printed).items()}
    return figures


def check_imports(checkout: Checkout) -> None:
    """Stop unless `import actcache` gives the checkout's own code."""
    where = Path(checkout.run("-c", "import actcache; print(actcache.__file__)")[1].strip())
    if not where.resolve().is_relative_to(checkout.source.resolve()):
        raise SystemExit(f"{checkout.name} imports {where}, expected {checkout.source}")


def ratio_table(rounds: Sequence[Mapping[str, Mapping[str, Seconds]]]) -> list[list[str]]:
    """Return rows: work, median of new / old in CPU and wall seconds, range, and seconds.

    Each round holds the seconds of `old` and of `new` by name of the work.
    """
    rows = [["work", "CPU, new / old", "range", "wall, new / old", "CPU s, old", "CPU s, new"]]
    for work in rounds[0]["old"]:
        old, new = ([seconds[side][work] for seconds in rounds] for side in ("old", "new"))
        cpu = [b[0] / a[0] for a, b in zip(old, new, strict=True) if a[0]] or [1.0]
        wall = [b[1] / a[1] for a, b in zip(old, new, strict=True)]
        rows.append(
            [
                work,
                f"{statistics.median(cpu):.2f}",
                f"{min(cpu):.2f} to {max(cpu):.2f}",
                f"{statistics.median(wall):.2f}",
                *(f"{statistics.median(x[0] for x in side):.3g}" for side in (old, new)),
            ]
        )
    return rows


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("old", type=Path, metavar="OLD_CHECKOUT")
    parser.add_argument("--new", type=Path, default=ROOT, help="default: this checkout")
    parser.add_argument("--rounds", type=int, default=5, help="default %(default)s")
    parser.add_argument("--quick", action="store_true", help="few rows: does it run at all?")
    args = parser.parse_args(argv)
    progress = Console(stderr=True)
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        inputs = Path(folder)
        saved_gpt2(inputs / "gpt2", **SHAPE)
        saved_rows(inputs / "rows.jsonl", 400, tokens=64, vocab=SHAPE["vocab"])
        checkouts = []
        for name, source in (("old", args.old), ("new", args.new)):
            (inputs / name).mkdir()
            checkouts.append(Checkout(name, source.resolve(), inputs / name))
            check_imports(checkouts[-1])
        works = measurements(inputs, quick=args.quick)
        rounds = []
        for number in range(args.rounds):
            seconds: dict[str, dict[str, Seconds]] = {"old": {}, "new": {}}
            for checkout in checkouts:
                seconds[checkout.name] |= store_seconds(checkout)
            for work, run in works.items():
                for checkout in checkouts:
                    progress.print(f"round {number + 1}, {work}, {checkout.name}")
                    seconds[checkout.name][work] = run(checkout)
            rounds.append(seconds)
    head, *rows = ratio_table(rounds)
    print("| " + " | ".join(head) + " |\n|---|" + "---:|" * (len(head) - 1))
    for row in rows:
        print("| " + " | ".join(row) + " |")
    minutes = (time.perf_counter() - start) / 60
    print(f"\n{args.rounds} rounds in {minutes:.1f} minutes; old: {args.old}, new: {args.new}")


if __name__ == "__main__":
    main()
