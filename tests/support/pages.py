"""Numbers of a page that nobody measured: every section of report.html, and texts that mean harm."""

from dataclasses import replace

import numpy as np

from actcache.analysis.names import CAA, CONTROL, FIXED, W2S_SHUFFLED, w2s
from actcache.analysis.predict.outcome import (
    DirectionSetScores,
    EncoderScore,
    Plane,
    PredictorScores,
    TrainingScore,
    VariantScores,
)
from actcache.analysis.predict.w2s.settings import ChosenSetting, W2SSettings
from actcache.analysis.report.html.samples import Samples
from actcache.analysis.stats.bootstrap import Interval
from actcache.analysis.sweep.strategies import StrategyScore
from tests.support.summaries import GRID, LAYERS, planted_behavior, planted_summary

HOSTILE = (
    "</script><script>window.harmed = 1</script><img src=x onerror='window.harmed = 1'>"
    "<!-- \x1b[31mred\x00 {{ 7 * 7 }} \u202e backwards \"quoted\" & 'single'"
)


def behaviors(n):
    """Scores of `n` behaviors, the first of a hostile name and in two framings."""
    scores = {f"behavior {i}": planted_behavior(0.5 + i, seed=i) for i in range(1, n)}
    first = planted_behavior(1.0, by_letter=0.5)
    return {HOSTILE: first, f"{HOSTILE}@sys_neg": first, **scores}


def interval(value):
    return Interval(value=value, low=value - 0.1, high=value + 0.1)


def strategy(gain):
    return StrategyScore(
        slope=interval(1 + gain), share=0.9, gain=interval(gain), n_seeds=5, slope_error=0.01, share_error=0.01
    )  # fmt: skip


def predictors(names):
    """Scores of CAA and random vectors, with one predictor and its control."""
    gains = {FIXED: 0.0, "random": -0.5, "oracle": 0.4, "cross_fitted": 0.1}
    strategies = {key: strategy(gain) for key, gain in gains.items()}
    strategies |= {w2s(1): strategy(0.2), W2S_SHUFFLED: strategy(0.0)}
    variant = VariantScores(mean=strategies, behaviors=dict.fromkeys(names, strategies))
    chosen = ChosenSetting(rate=0.001, width=32, depth=1, decay=0.01, epochs=5)
    training = TrainingScore(
        active_layers=(3, 5),
        chosen=chosen,
        n_folds=5,
        cv_value=1.0,
        cv_crossfit=1.0,
        cv_fixed=0.9,
        cv_gain=0.1,
        cv_gain_error=0.02,
    )
    trained = {w2s(1): training, W2S_SHUFFLED: training}
    scores = DirectionSetScores(
        fixed_layer=dict.fromkeys(names, 5),
        primary=w2s(1),
        variants={"base": variant, "sys_neg": variant},
        by_letter={"A": strategies, "B": strategies},
        over_shuffled=interval(0.2),
        training=dict.fromkeys(names, trained),
        accuracy={name: {w2s(1): 0.5, W2S_SHUFFLED: 0.3} for name in names},
        oracle_distance=dict.fromkeys(names, 0.7),
    )
    encoder = EncoderScore(
        settings={}, n_dimensions=8, n_truncated=0, silhouette=0.2, accuracy=0.5, value=1.2, fixed=1.0
    )  # fmt: skip
    return PredictorScores(
        behaviors=tuple(names),
        layers=LAYERS,
        top=(1,),
        seeds=5,
        encoder="cache:3",
        settings=W2SSettings(),
        variants=("base", "sys_neg"),
        letters=("A", "B"),
        sets={CAA: scores, CONTROL: scores},
        networks={},
        encoders={"cache:3": encoder},
        plane=Plane(method="pca", explained=(0.5, 0.2)),
    )


def full_summary(n=3):
    """A summary with every stage of pairs."""
    names = [HOSTILE, *(f"behavior {i}" for i in range(1, n))]
    summary = planted_summary(behaviors(n))
    assert summary.sweep is not None
    grids = {
        name: tuple(tuple(row) for row in np.outer((0.1, 2.0, 0.5), GRID) + 3) for name in names
    }
    store = replace(summary.store, path=f"/{HOSTILE}.zarr", build={"model": HOSTILE})
    return replace(
        summary,
        store=store,
        sweep=replace(summary.sweep, mean_propensity=grids),
        predictors=predictors(names),
        left_out=(f"predictors: {HOSTILE}",),
    )


def planted_samples(n=40, names=(HOSTILE, "behavior 1"), prompt=HOSTILE):
    """Samples whose best layers are 3 and 7 in turns; slopes rise with their number."""
    rng = np.random.default_rng(0)
    slope = rng.normal(0, 0.001, (n, len(LAYERS)))
    slope[:, 1] += 1
    slope[np.arange(n), np.arange(n) % 2 * 2] += np.arange(n) / n + 1.5
    return Samples(
        id=[f"row-{i}" for i in range(n)],
        behavior=[names[i % len(names)] for i in range(n)],
        variant=["base" if i % 4 else "sys_neg" for i in range(n)],
        letter=["AB"[i % 2] for i in range(n)],
        prompt=[f"Prompt number {i}: {prompt}" for i in range(n)],
        layers=LAYERS,
        multipliers=GRID.tolist(),
        slope=slope,
        propensity=(slope[:, :, None] * GRID).astype(np.float32),
        predicted=np.full(n, 5),
        plane=rng.normal(size=(n, 2)).astype(np.float32),
        n_tested=n,
    )


def planted_choices(names):
    return [
        {"behavior": name, "by": by, "layer": layer, "share": 1 / 3}
        for name in names
        for by in ("best", "predicted", "shuffled")
        for layer in LAYERS
    ]
