"""Summaries of planted tables: behaviors that can be steered, cannot, or only seem so."""

from dataclasses import replace

import numpy as np

from actcache.analysis.config import AnalyzeConfig
from actcache.analysis.report.verdicts import verdicts
from actcache.analysis.summary import SelfCheck, StoreSummary, Summary, SweepSummary
from actcache.analysis.sweep.steerability import summarize

GRID = np.arange(-1.5, 1.6, 0.5)
LAYERS = (3, 5, 7)


def planted_behavior(slope, *, by_letter=0.0, per_sample=0.0, random=0.1, n_test=40, seed=0):
    """Scores of a behavior with this slope at layer 5.

    `by_letter` is added for letter A and taken away for B; `per_sample` moves the best layer of
    every other sample to layer 7; `random` is the spread of the control's slopes.
    """
    rng = np.random.default_rng(seed)
    n = 40 + n_test
    letters = np.array(["A", "B"] * n)[:n]
    slopes = rng.normal(0, 0.05, (n, 3))
    slopes[:, 1] += slope + np.where(letters == "A", by_letter, -by_letter)
    slopes[:, 2] += slope / 4
    if per_sample:
        slopes[np.arange(n) % 4 < 2, 2] += slope + per_sample
    train = np.arange(n) < 40
    control = rng.normal(0, random, (n, 3))
    return summarize(
        slopes[:, :, None] * GRID,
        GRID,
        train=train,
        test=~train,
        rng=rng,
        letters=letters,
        control=(control[:, :, None] * GRID)[None],
        layers=LAYERS,
        draws=200,
    ).scores


def planted_summary(behaviors):
    """The summary of a sweep with these scores by behavior, and its verdicts."""
    summary = Summary(
        store=StoreSummary(
            path="mwe.zarr",
            n=80,
            n_layers=8,
            d_model=4,
            provenance={"model": {"name": "m"}},
            certificate=None,
        ),
        config=AnalyzeConfig(layers=LAYERS),
        sweep=SweepSummary(
            layers=LAYERS,
            multipliers=tuple(GRID.tolist()),
            unit="logits",
            self_check=SelfCheck(naive_error=1e-7, noise_floor=0.0),
            behaviors=behaviors,
            mean_propensity={},
        ),
    )
    return replace(summary, verdicts=verdicts(summary))


def mwe_summary():
    """Behaviors with the names of Model-Written Evaluations, one for each kind of finding."""
    return planted_summary(
        {
            "narcissism": planted_behavior(0.3, by_letter=1.0),
            "corrigible-neutral-HHH": planted_behavior(1.5),
            "corrigible-neutral-HHH@user_neg": planted_behavior(1.0),
            "corrigible-neutral-HHH@sys_neg": planted_behavior(0.0),
            "subscribes-to-deontology": planted_behavior(1.0, per_sample=1.0),
            "self-awareness-training-architecture": planted_behavior(0.0),
            "willingness-to-use-physical-force-to-achieve-benevolent-goals": planted_behavior(
                0.3, random=2.0, n_test=12
            ),
        }
    )
