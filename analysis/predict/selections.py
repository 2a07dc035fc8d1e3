"""Layers selected for each sample of a behavior by every strategy, predictors (W2S) among them.

Trains a predictor for each behavior on the slopes of its train samples, and as a control one that
was shown other prompts' embeddings.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
from jaxtyping import Bool, Float32, Float64, Int64, Shaped

from actcache.analysis.config import AnalyzeConfig
from actcache.analysis.directions.letter import why_no_letter
from actcache.analysis.names import (
    L2S,
    L2S_WITHOUT_LETTER,
    OWN_DIFFERENCE,
    W2S_SHUFFLED,
    slugs,
    w2s,
)
from actcache.analysis.predict.w2s.layer_predictor import LayerPredictor, train_layer_predictors
from actcache.analysis.predict.w2s.settings import W2SSettings
from actcache.analysis.sweep.layer_ranks import active_layers, best_layers
from actcache.analysis.sweep.strategies import (
    LayerStrategy,
    SlopeTable,
    chosen_layers,
    compared_strategies,
    fixed_layer,
)
from actcache.conventions import SPLITS
from actcache.errors import MismatchError
from actcache.store.store import Store


@dataclass(frozen=True, kw_only=True)
class BehaviorRows:
    """The rows of one behavior, and what is known of them."""

    folder: str
    """Name of the behavior's folder under `predictors/`."""

    at: Int64[np.ndarray, " row"]
    """Their numbers in the store."""

    train: Bool[np.ndarray, " row"]
    validation: Bool[np.ndarray, " row"]
    test: Bool[np.ndarray, " row"]
    """Base train samples, base validation samples, and test samples of all variants."""

    variant: Shaped[np.ndarray, " row"]
    prompt: Shaped[np.ndarray, " row"]
    letter: Shaped[np.ndarray, " row"]

    def among(self, chosen: Bool[np.ndarray, " row"]) -> "BehaviorRows":
        """Train and test on some of the rows alone."""
        sides = {side: getattr(self, side) & chosen for side in SPLITS}
        return replace(self, **sides)


def predictor_rows(store: Store, *, vectors: Sequence[str]) -> dict[str, BehaviorRows]:
    """Find the rows of each behavior of a store of pairs, if there are enough to train and test on.

    Learned `vectors` (`l2s`) need validation samples too.
    """
    behaviors = {}
    names = [str(behavior) for behavior in np.unique(store["behavior"])]
    for behavior, folder in slugs(names).items():
        at = np.flatnonzero(store["behavior"] == behavior)
        split, variant = store["split"][at], store["variant"][at]
        base = variant == "base"
        sides = {side: (split == side) & base for side in SPLITS}
        for side, rows in sides.items():
            if not rows.any() and (side != "validation" or "l2s" in vectors):
                without = ", or pass --vectors caa" if side == "validation" else ""
                raise MismatchError(
                    f"behavior '{behavior}' has no base rows of the split '{side}', which "
                    f"predictors need. Build from more rows, give rows a split{without}."
                )
        prompts = store["prompt"][at]
        if len(np.unique(prompts[sides["train"]])) < 2:
            raise MismatchError(
                f"behavior '{behavior}' has one train prompt, expected two or more to train "
                "predictors on. Build from more rows."
            )
        behaviors[behavior] = BehaviorRows(
            folder=folder,
            at=at,
            train=sides["train"],
            validation=sides["validation"],
            test=split == "test",
            variant=variant,
            prompt=prompts,
            letter=store["letter"][at],
        )
    return behaviors


def learned_sets(store: Store, config: AnalyzeConfig) -> list[str]:
    """Name the sets of learned directions that an analysis sweeps; those of `LearnedVectors`."""
    if "predictors" not in config.stages or L2S not in config.vectors:
        return []
    try:
        behaviors = predictor_rows(store, vectors=config.vectors)
    except MismatchError:  # the stage is left out
        return []
    lettered = (
        not why_no_letter(store, rows=np.isin(np.arange(store.n), rows.at[rows.train]))
        for rows in behaviors.values()
    )
    return [L2S, OWN_DIFFERENCE, *([L2S_WITHOUT_LETTER] if any(lettered) else [])]


@dataclass(frozen=True, kw_only=True)
class LayerSelections:
    """Which layers each strategy selects for one behavior, with one set of directions.

    Layers are places among those that were swept.
    """

    rows: BehaviorRows
    slopes: SlopeTable
    """Of the behavior's rows."""

    fixed: int
    frequent: int
    """The layer that is best for most train samples."""

    active: Sequence[int]
    """The layers that are best for some train sample."""

    predictors: Mapping[str, LayerPredictor]
    """By strategy; empty where none was trained."""

    predicted: Mapping[str, Int64[np.ndarray, "seed row"]]
    """Layer of every row, by strategy."""

    def strategies(self, rows: Bool[np.ndarray, " row"]) -> dict[str, LayerStrategy]:
        """Read all strategies on some of the behavior's rows."""
        table = self.slopes.of(rows)
        compared = compared_strategies(
            table, fixed_layer=self.fixed, frequent_layer=self.frequent, active=self.active
        )
        return compared | {
            name: chosen_layers(table.slope, layers[:, rows], fixed_layer=self.fixed)
            for name, layers in self.predicted.items()
        }


def train_predictors(
    rows: BehaviorRows,
    slope: Float64[np.ndarray, "row layer"],
    *,
    layers: Sequence[int],
    embeddings: Float32[np.ndarray, "row e"],
    settings: W2SSettings,
    device: str = "cpu",
    on_network: Callable[[int], object] = lambda _n: None,
) -> dict[str, LayerPredictor]:
    """Train a behavior's predictors, by the strategy that they stand for, and the control.

    The control is trained with the first `top` of the settings. `layers` has the number of each
    layer that was swept; `on_network` is told how many networks were trained, each time.
    """
    train = partial(
        train_layer_predictors,
        slope=slope,
        train=rows.train,
        groups=rows.prompt.tolist(),
        letters=rows.letter.tolist(),
        layers=layers,
        device=device,
        on_network=on_network,
    )
    trained = train(embeddings, settings=settings)
    shuffled = _shuffled(embeddings, rows.train, settings.seed)
    (control,) = train(shuffled, settings=replace(settings, top=settings.top[:1])).values()
    return {w2s(top): predictor for top, predictor in trained.items()} | {W2S_SHUFFLED: control}


def select_layers(
    rows: BehaviorRows,
    slopes: SlopeTable,
    *,
    fixed: int | None = None,
    predictors: Mapping[str, LayerPredictor] | None = None,
    embeddings: Float32[np.ndarray, "row e"] | None = None,
) -> LayerSelections:
    """Select layers for one behavior by every strategy.

    `fixed` is the fixed layer's place, where other slopes than these choose it; the predictors, as
    `train_predictors` gives them, read the embeddings.
    """
    best = best_layers(slopes.slope[rows.train])
    counts = np.bincount(best, minlength=slopes.slope.shape[1])
    predicted = {}
    if predictors and embeddings is not None:
        predicted = {name: predictor.places(embeddings) for name, predictor in predictors.items()}
    return LayerSelections(
        rows=rows,
        slopes=slopes,
        fixed=fixed_layer(slopes.slope, rows.train) if fixed is None else fixed,
        frequent=int(counts.argmax()),
        active=active_layers(best).tolist(),
        predictors=predictors or {},
        predicted=predicted,
    )


def _shuffled(
    embeddings: Float32[np.ndarray, "row e"], train: Bool[np.ndarray, " row"], seed: int
) -> Float32[np.ndarray, "row e"]:
    """Shuffle embeddings among train samples: labels keep their frequencies, not their prompts."""
    order = np.flatnonzero(train)
    shuffled = embeddings.copy()
    shuffled[order] = embeddings[np.random.default_rng(seed).permutation(order)]
    return shuffled
