"""How long does `analyze` take for a behavior at Llama-2-7B size without sweeps, in what memory?

A synthetic store in float16 (positions prompt, positive, negative) with what predictors look for:
targets and a best layer that are nonlinear functions of the prompt, and balanced letters. No model
is run: `pretended_sweep` replaces the sweep, which `benchmarks.engine.sweep` times; like a sweep
it reads all learned vectors. Everything else is `analyze` itself, in its own process, with as many
threads for NumPy as for torch. Peak memory includes mapped files.
"""

import importlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from actcache.analysis.sweep.open_sweep import Sweep, open_sweep
from actcache.progress import SILENT, Progress
from actcache.store.schema import RowArray
from actcache.store.store import Store, open_store
from actcache.store.writing.contents import StoreContents
from actcache.store.writing.writer import Writer
from benchmarks.support.one_stage import peak_resident
from benchmarks.support.turns import arguments, report

LATENTS = 64
"""Latent numbers behind a prompt's residuals, besides noise."""

TOPICS = 8
"""Groups of prompts, each with its best layer."""

REST = "directions, figures, tables, other files"
"""The part without a progress bar."""

STRENGTH = {"random": 0.0, "difference_of_means": 1.0, "l2s": 1.3, "l2s_without_letter": 1.1}
"""Slope of each direction set at the best layer; 1.5 for sets that are not named."""


@dataclass(frozen=True)
class Planted:
    """What a synthetic store was made from."""

    latent: np.ndarray
    """`[n, LATENTS]`"""

    best: np.ndarray
    """Best layer of each row."""

    letter: np.ndarray
    """+1 where the positive completion is A, else -1."""


def planted(n: int, layers: int) -> Planted:
    """Draw the truth; equal for equal arguments, so that two processes need not exchange it."""
    rng = np.random.default_rng(0)
    latent = rng.standard_normal((n, LATENTS)).astype(np.float32)
    latent /= np.sqrt(np.arange(1, LATENTS + 1, dtype=np.float32))
    scores = latent[:, :TOPICS] * np.sqrt(np.arange(1, TOPICS + 1))
    of_topic = np.random.default_rng(1).integers(layers, size=TOPICS)
    letter = np.where(np.arange(n) % 2 == 0, 1, -1).astype(np.float32)
    return Planted(latent=latent, best=of_topic[scores.argmax(1)], letter=letter)


def residuals(truth: Planted, layer: int, d: int) -> dict[str, np.ndarray]:
    """Return the residuals `[n, d]` of a layer by position."""
    rng = np.random.default_rng([2, layer])
    n = len(truth.latent)

    def draw(*shape: int) -> np.ndarray:
        return rng.standard_normal(shape, dtype=np.float32)

    prompt = draw(n, d) + truth.latent @ draw(LATENTS, d) + 3 * draw(d)
    target = np.tanh(3 * truth.latent[:, ::-1]) @ draw(LATENTS, d) + draw(n, d) + draw(d)
    target += truth.letter[:, None] * draw(d)
    negative = prompt + draw(n, d)
    return {"prompt": prompt, "positive": negative + target, "negative": negative}


def make_store(path: Path, *, n: int, layers: int, d: int) -> Store:
    """Write a store of one behavior: 40 % train, 10 % validation, the rest test."""
    truth = planted(n, layers)
    split = np.repeat(["train", "validation", "test"], [n * 4 // 10, n // 10, n - n // 2])
    letters = np.where(truth.letter > 0, "A", "B")
    arrays = [
        RowArray(f"resid_post/{name}", layers, d, "float16")
        for name in ("prompt", "positive", "negative")
    ]
    columns: dict[str, Any] = {
        "id": [f"row-{i}" for i in range(n)],
        "behavior": ["planted"] * n,
        "variant": ["base"] * n,
        "split": split.tolist(),
        "letter": letters.tolist(),
        "label": [""] * n,
        "prompt": [f"question {i}" for i in range(n)],
        "positive": [f"({x})" for x in letters],
        "negative": [f"({x})" for x in np.where(truth.letter > 0, "B", "A")],
    }
    with Writer.create(
        path,
        StoreContents(
            kind="residuals",
            n=n,
            arrays=arrays,
            columns=columns,
            config={"synthetic": True},
            provenance={"data_sha256": "", "model": {"name": "none", "weights_sha256": ""}},
            shard_rows=n,
        ),
    ) as writer:
        blocks = {array.name: np.empty((n, layers, d), np.float16) for array in arrays}
        for layer in range(layers):
            for name, values in residuals(truth, layer, d).items():
                blocks[f"resid_post/{name}"][:, layer] = values
        writer.commit(blocks)
        writer.finish()
    return open_store(path)


def pretended_sweep(
    store: Store,
    sets: Mapping[str, Any],  # of SweepSet
    *,
    multipliers: Sequence[float],
    out: str | Path,
    layers: Sequence[int] | None = None,
    progress: Progress = SILENT,
    title: str = "sweep",
    **_model_and_rule: object,
) -> Sweep:
    """Write what `run_sweep` would, as if propensity were a noisy line in the multiplier."""
    swept = list(range(store.n_layers) if layers is None else layers)
    truth = planted(store.n, store.n_layers)
    away = (np.array(swept) - truth.best[:, None]) / (store.n_layers / 12)
    arrays, values = [], {}
    directions = {name: given.directions for name, given in sets.items()}
    for number, (name, direction_set) in enumerate(directions.items()):
        for start in range(0, store.n, 16):  # about the rows of a pass
            direction_set.rows(np.arange(start, min(start + 16, store.n)))
        rng = np.random.default_rng([3, number])
        slope = STRENGTH.get(name, 1.5) * np.exp(-(away**2)) + 0.3 * rng.normal(size=away.shape)
        grid = slope[..., None] * np.array(multipliers)
        grid += 0.1 * rng.normal(size=grid.shape)
        array = RowArray(
            f"{name}/propensity",
            len(swept),
            len(multipliers),
            "float32",
            ("n", "layer", "multiplier"),
        )
        arrays.append(array)
        values[array.name] = grid.astype(np.float32)
    names = ("id", "behavior", "letter", "split")
    with (
        progress.steps(title, store.n),
        Writer.create(
            out,
            StoreContents(
                kind="sweep",
                n=store.n,
                arrays=arrays,
                columns={
                    **{name: store[name].tolist() for name in names},
                    "layer": np.array(swept, np.int64),
                    "multiplier": np.array(multipliers, np.float64),
                },
                config={"sets": {name: chosen.digest for name, chosen in directions.items()}},
                provenance={"synthetic": True},
                shard_rows=store.n,
            ),
        ) as writer,
    ):
        writer.commit(values)
        writer.finish({"naive_error": 0.0, "noise_floor": 0.0})
    return open_sweep(out)


def stage(given: Mapping[str, Any]) -> dict[str, Any]:
    """Run `analyze`; return the seconds of each part, and the peak memory of this process."""
    import torch

    from actcache.analysis.config import AnalyzeConfig
    from actcache.analysis.sweep import run as sweep
    from actcache.progress import Silent

    torch.set_num_threads(given["threads"])
    # Replaced before anything imports it; nothing else is.
    sweep.run_sweep = pretended_sweep
    seconds: dict[str, float] = {}

    class Timed(Silent):
        @contextmanager
        def steps(self, title: str, _total: int | None) -> Iterator[Callable[[int], None]]:
            start = time.perf_counter()
            yield lambda _n: None
            seconds[title] = time.perf_counter() - start

    pipeline: Any = importlib.import_module("actcache.analysis.pipeline")
    write_report = pipeline.write_results_report

    def timed_report(*args: Any, **settings: Any) -> Any:
        with Timed().steps("report.html and pictures", None):
            return write_report(*args, **settings)

    pipeline.write_results_report = timed_report
    start, busy = time.perf_counter(), time.process_time()
    results = pipeline.analyze(
        open_store(given["store"]),
        given["out"],
        config=AnalyzeConfig(stages=("vectors", "sweep", "predictors")),
        model=lambda: None,
        progress=Timed(),
        device=given["device"],
    )
    whole = time.perf_counter() - start
    predictors = results.summary.predictors
    assert predictors is not None
    scores = predictors.sets["caa"].base.mean
    network = predictors.networks["planted"]
    return {
        "seconds": {**seconds, REST: whole - sum(seconds.values()), "in all": whole},
        "processor": time.process_time() - busy,
        "peak": peak_resident(),
        "gain of W2S Top-1": scores["w2s_top1"].gain.value,
        "gain of the oracle": scores["oracle"].gain.value,
        "loss of L2S over the mean's": network.validation_loss / network.mean_loss,
    }


def alone(given: Mapping[str, Any]) -> dict[str, Any]:
    """Run `stage` in its own process."""
    threads = str(given["threads"])
    pools = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"), threads)
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.analysis.predictors", "--stage", json.dumps(given)],
        env=os.environ | pools,
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    figures: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return figures


def main(argv: Sequence[str] | None = None) -> None:
    parser = arguments(__doc__)
    add = parser.add_argument
    add("--n", type=int, default=1000, help="rows (default 1000); 40%% train, 10%% validation")
    add("--layers", type=int, default=32)
    add("--d", type=int, default=4096, help="width of the residuals (default 4096)")
    add("--device", default="cpu", help="where networks are trained (default cpu)")
    add("--quick", action="store_true", help="small: does it run at all?")
    add("--stage", help="run one stage; used by the benchmark itself")
    parser.set_defaults(repeats=1)
    args = parser.parse_args(argv)
    if args.stage:
        print(json.dumps(stage(json.loads(args.stage))))
        return
    if args.quick:
        args.n, args.layers, args.d = 60, 2, 16
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        start = time.perf_counter()
        make_store(folder / "s.zarr", n=args.n, layers=args.layers, d=args.d)
        making = time.perf_counter() - start
        given = {"store": str(folder / "s.zarr"), "threads": args.threads, "device": args.device}
        runs = [alone({**given, "out": str(folder / f"out-{i}")}) for i in range(args.repeats)]
    first = runs[0]
    figures: dict[str, Any] = {
        f"{part}, seconds": min(run["seconds"][part] for run in runs) for part in first["seconds"]
    }
    figures["processor seconds in all"] = min(run["processor"] for run in runs)
    figures["peak resident memory, MB"] = max(run["peak"] for run in runs)
    planted_figures = ("gain of W2S Top-1", "gain of the oracle", "loss of L2S over the mean's")
    report(
        "predictors",
        figures | {name: first[name] for name in planted_figures},
        about={
            "rows": args.n,
            "layers": args.layers,
            "d": args.d,
            "threads of the stage": args.threads,
            "device": args.device,
            "seconds to make the store": round(making, 1),
            "sweeps": "pretended, no model is run",
        },
    )


if __name__ == "__main__":
    main()
