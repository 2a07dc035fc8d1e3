"""What does a build on the workers of a cluster cost beside one in a single process?

In turns, into a folder: `run_build`, and the same plan in a pool of one worker and in one of two.
Starting Ray and loading the model are not counted. All stores are checked to be equal. Ray listens
on all interfaces: run it where nobody else is, or in a network of its own (`unshare -n`).
"""

import logging
import os
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from actcache import demo
from actcache.build.config import BuildConfig
from actcache.build.plan import BuildPlan, plan_build
from actcache.build.run import load_planned, run_build
from actcache.build.workers import LoadModel, run_in_pool
from actcache.cluster import Pool, Workers, connect
from actcache.data.formats import read_samples
from benchmarks.support.turns import arguments, in_turns, ratio, report


def demo_plan(n: int) -> BuildPlan:
    """Plan `n` rows of the demo model, no two of which are equal."""
    samples, rng = read_samples(demo.row_files()), np.random.default_rng(0)
    words = sorted({word for sample in samples for word in sample.prompt.split()})
    rows = [
        replace(sample, id=f"{i}", prompt=f"{' '.join(rng.choice(words, 8))} {sample.prompt}")
        for i, sample in ((i, samples[i % len(samples)]) for i in range(n))
    ]
    plan = plan_build(rows, BuildConfig(model=str(demo.model_path())))
    assert len({row.prompt for row in plan.rendered}) == n  # a row that repeats another is not run
    return plan


def main(argv: Sequence[str] | None = None) -> None:
    parser = arguments(__doc__)
    parser.add_argument("--n", type=int, default=4096, help="rows (default 4096: 8 runs)")
    parser.add_argument("--quick", action="store_true", help="few rows: does it run at all?")
    args = parser.parse_args(argv)
    if args.quick:
        args.n, args.repeats = 64, 1
    os.environ["OMP_NUM_THREADS"] = str(args.threads)
    torch.set_num_threads(args.threads)
    plan = demo_plan(args.n)
    model = load_planned(plan.config)
    load = LoadModel(config=plan.config)
    import ray

    ray.init(
        "local",
        num_cpus=3 * args.threads,
        include_dashboard=False,
        logging_level=logging.CRITICAL,
        log_to_driver=False,
    )
    with (
        tempfile.TemporaryDirectory() as folder,
        connect(Workers(n=2, address="auto")) as session,
        Pool(replace(session, workers=1), load) as one,
        Pool(session, load) as two,
    ):
        paths = {name: Path(folder, name) for name in ("alone", "one worker", "two workers")}
        for pool in (one, two):
            pool.ask(repr)  # waits until a model is loaded
        took = in_turns(
            {
                "alone": lambda: run_build(plan, paths["alone"], model=model, overwrite=True),
                "one worker": lambda: run_in_pool(plan, paths["one worker"], one, overwrite=True),
                "two workers": lambda: run_in_pool(plan, paths["two workers"], two, overwrite=True),
            },
            repeats=args.repeats,
        )
        files = [
            {
                file.relative_to(path): file.read_bytes()
                for file in path.rglob("*")
                if file.is_file()
            }
            for path in paths.values()
        ]
        assert files[0] == files[1] == files[2]
    ray.shutdown()
    report(
        "workers",
        {
            "one worker / alone": ratio(took, "one worker", "alone"),
            "one worker / two workers": ratio(took, "one worker", "two workers"),
            "rows a second, alone": args.n / min(took["alone"]),
        },
        about={"rows": args.n, "repeats": args.repeats},
    )


if __name__ == "__main__":
    main()
