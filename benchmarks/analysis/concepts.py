"""Do directions of a persona line, read where attention looks at it, steer prompts without it?

On the demo model: for each behavior, rows whose prompt begins with its persona line and the same
rows without it give directions at the attended token and at every fixed one; all are brought to the
norm of the difference of means of the pairs and swept on pair rows that have no persona. Intervals
resample behaviors and samples. A second part times a build with attention masses against the same
build without, in turns.
"""

import json
import tempfile
import time
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from actcache import build_store
from actcache.analysis.concepts.summary import ConceptSummary
from actcache.analysis.pipeline import analyze
from actcache.build.config import BuildConfig
from actcache.build.pipeline import plan_store
from actcache.build.run import load_planned, run_build
from actcache.conventions import ATTENTION, ATTENTION_CONTROL, FitMethod, Site
from actcache.data.concepts import ConceptRows, ConceptSettings
from actcache.data.formats import read_samples
from actcache.data.personas import load_personas
from actcache.demo import model_path, personas_path, row_files
from actcache.engine.tree_capture import capture
from benchmarks.support.turns import arguments, in_turns, ratio, report

SITES: tuple[Site, ...] = ("resid_post", ATTENTION, ATTENTION_CONTROL)
MASSES = 1.15
"""Seconds with masses over seconds without, at most."""


def main(argv: Sequence[str] | None = None) -> None:
    parser = arguments(__doc__)
    parser.add_argument("--rows", type=int, default=250, help="pair rows a behavior (default 250)")
    parser.add_argument("--quick", action="store_true", help="few rows: does it run at all?")
    args = parser.parse_args(argv)
    methods: tuple[FitMethod, ...] = ("mean", "rfm")
    if args.quick:
        args.rows, args.repeats, methods = 120, 1, ("mean",)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        rows = write_persona_rows(folder / "personas.jsonl")
        about = {"rows": args.rows, "repeats": args.repeats, "methods": methods}
        report("concept directions", swept(folder, rows, args.rows, methods), about=about)
        report("attention masses", masses(folder, rows, args.repeats), about=about)


def write_persona_rows(path: Path) -> Path:
    """Write each behavior's train prompts with its persona line and without."""
    with path.open("w", encoding="utf-8") as file:
        for row in persona_rows():
            file.write(json.dumps(row) + "\n")
    return path


def persona_rows() -> Iterator[dict[str, Any]]:
    personas = load_personas(personas_path())
    for source in row_files():
        train = [s.prompt for s in read_samples([source]) if s.split == "train"]
        prompts = list(dict.fromkeys(train))[:64]
        settings = ConceptSettings(prefix="{concept}")
        behavior, line = source.stem, personas[source.stem].positive
        rows = ConceptRows(concepts=[behavior], pools=[prompts], settings=settings)
        for row in rows.rows():
            if row["label"] == "with":
                row["prompt"] = line + row["prompt"].removeprefix(behavior)
                row["span"] = [0, len(line)]
            yield row


def swept(folder: Path, rows: Path, n: int, methods: Sequence[FitMethod]) -> dict[str, Any]:
    """Fit on persona rows, sweep on pairs; each set's slope, and its gain over CAA and random."""
    about: dict[str, Any] = {"model": str(model_path()), "note": lambda _sentence: None}
    concepts = build_store(
        rows, folder / "personas.zarr", positions=("last:6",), sites=SITES, **about
    )
    analyze(concepts, folder / "concepts", stages=("concepts",), methods=tuple(methods))
    pairs = build_store(row_files(), folder / "pairs.zarr", limit=n, **about)
    keys = list(next(iter(ConceptSummary.read(folder / "concepts").concepts.values())).sets)
    chosen = [key for key in keys if key.startswith("mean-") or key.endswith("-attended")]
    file = folder / "concepts" / "directions.safetensors"
    results = analyze(
        pairs,
        folder / "out",
        stages=("vectors", "sweep"),
        directions=tuple(f"{file}:{key}" for key in chosen),
    )
    assert results.summary.sweep is not None
    compared = results.summary.sweep.compared
    assert compared is not None
    figures: dict[str, Any] = {}
    for name, slopes in compared.sets.items():
        figures[name] = f"{slopes.fixed}; minus CAA {slopes.over_caa or '-'}"
        figures[name] += f"; minus random {slopes.over_random or '-'}"
    for layer in compared.layers:
        place = compared.layers.index(layer)
        best = max(compared.sets, key=lambda name: compared.sets[name].by_layer[place].value)
        attended = compared.sets["mean-hard-attended"].by_layer[place]
        caa = compared.sets["difference_of_means"].by_layer[place]
        figures[f"layer {layer}"] = f"attended {attended}, CAA {caa}, largest: {best}"
    return figures


def masses(folder: Path, rows: Path, repeats: int) -> dict[str, Any]:
    """CPU seconds of a build with masses over those of the same build without."""
    builds: dict[str, Sequence[Site]] = {
        "without": ("resid_post",),
        "masses": SITES[:2],
        "masses and control": SITES,
    }
    plans = {}
    for name, sites in builds.items():
        config = BuildConfig(model=str(model_path()), positions=("last:6",), sites=sites)
        plans[name] = plan_store(rows, config)
    model = load_planned(plans["without"].config)

    def build(name: str) -> None:
        run_build(plans[name], folder / "turn.zarr", overwrite=True, model=model)

    def run(name: str) -> None:
        plan = plans[name]
        for start in range(0, plan.n, 32):
            capture(model, plan.rendered[start : start + 32], **plan.reading)

    # The checks before and after a build run a few rows once for every site: a cost that is the
    # same for any number of rows, so passes are timed alone too.
    passes = in_turns(
        {name: partial(run, name) for name in builds}, repeats=repeats, clock=time.process_time
    )
    took = in_turns(
        {name: partial(build, name) for name in builds},
        repeats=repeats,
        clock=time.process_time,
    )
    return {
        "masses / without, passes": ratio(passes, "masses", "without"),
        "masses and control / without, passes": ratio(passes, "masses and control", "without"),
        "masses / without": ratio(took, "masses", "without"),
        "masses and control / without": ratio(took, "masses and control", "without"),
        "at most": MASSES,
    }


if __name__ == "__main__":
    main()
