"""Layers predicted from prompts (W2S), for one set of directions and all behaviors.

Trains a predictor for each behavior on the slopes of its train samples, and one that was shown
other prompts' embeddings as a control; gives all ways of choosing the layer, side by side. Refuses
to know how directions were made and what a report looks like.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Bool, Float32, Float64, Int64, Shaped

from actcache.analysis.predict.w2s.layer_predictor import LayerPredictor
from actcache.analysis.predict.w2s.settings import W2SSettings
from actcache.analysis.predict.w2s.train_layers import train_layer_predictors
from actcache.analysis.sweep.layer_ranks import active_layers, best_layers
from actcache.analysis.sweep.steerability import fixed_layer
from actcache.analysis.sweep.strategies import SlopeTable
from actcache.analysis.sweep.ways import Way, chosen_way, crossfit_way, simple_ways
from actcache.conventions import SPLITS
from actcache.errors import MismatchError
from actcache.store.store import Store

SHUFFLED = "W2S shuffled"
"""The way of a predictor that was trained on the embeddings of other samples' prompts."""

CROSSFIT = "cross-fitted"
"""The oracle that chooses with one half of the multipliers and is read with the other."""


def w2s(top: int) -> str:
    """What the way of a predictor with smoothing over the best `top` layers is called."""
    return f"W2S Top-{top}"


@dataclass(frozen=True, kw_only=True)
class Rows:
    """The rows of one behavior, and what is known of them."""

    at: Int64[np.ndarray, " row"]
    """Their numbers in the store."""

    train: Bool[np.ndarray, " row"]
    """Base train samples."""

    validation: Bool[np.ndarray, " row"]
    """Base validation samples."""

    test: Bool[np.ndarray, " row"]
    """Test samples of all variants."""

    variant: Shaped[np.ndarray, " row"]
    prompt: Shaped[np.ndarray, " row"]
    letter: Shaped[np.ndarray, " row"]


def predictor_rows(store: Store, *, vectors: Sequence[str]) -> dict[str, Rows]:
    """The behaviors of a store and their rows, if there is enough to train and test on.

    Args:
        store: of pairs.
        vectors: learned ones (`l2s`) need validation samples too.

    Raises:
        MismatchError: a behavior lacks base rows of a split, or has one train prompt alone.
    """
    found = {}
    for behavior in np.unique(store["behavior"]).tolist():
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
        found[str(behavior)] = Rows(
            at=at,
            train=sides["train"],
            validation=sides["validation"],
            test=split == "test",
            variant=variant,
            prompt=prompts,
            letter=store["letter"][at],
        )
    return found


@dataclass(frozen=True, kw_only=True)
class Chosen:
    """What one behavior's choices rest on, with one set of directions. Layers are places."""

    rows: Rows
    slopes: SlopeTable
    """Of the behavior's rows."""

    fixed: int
    """The fixed layer."""

    frequent: int
    """The layer that is best for most train samples."""

    active: Sequence[int]
    """The layers that are best for some train sample."""

    predictors: Mapping[str, LayerPredictor]
    """By way; empty where none was trained."""

    places: Mapping[str, Int64[np.ndarray, "seed row"]]
    """Layer of every row, by way."""

    def ways(self, rows: Bool[np.ndarray, " row"]) -> dict[str, Way]:
        """All ways of choosing the layer, on some of the behavior's rows."""
        slope = self.slopes.slope[rows]
        found = simple_ways(
            slope, fixed_layer=self.fixed, frequent_layer=self.frequent, active=self.active
        )
        if self.slopes.halves is not None:
            halves = self.slopes.halves[:, rows]
            found[CROSSFIT] = crossfit_way(halves, fixed_layer=self.fixed)
        return found | {
            name: chosen_way(slope, places[:, rows]) for name, places in self.places.items()
        }


def train_predictors(
    rows: Rows,
    slope: Float64[np.ndarray, "row layer"],
    *,
    layers: Sequence[int],
    embeddings: Float32[np.ndarray, "row e"],
    settings: W2SSettings,
    device: str = "cpu",
    on_network: Callable[[int], object] = lambda _n: None,
) -> dict[str, LayerPredictor]:
    """A behavior's predictors by the way that they stand for, the control among them.

    Args:
        rows: of the behavior.
        slope: of these rows.
        layers: number of each layer that was swept.
        embeddings: of these rows' prompts.
        settings: the control is trained with the first of its `top`.
        device: where networks are trained.
        on_network: told how many networks were trained, each time.

    Raises:
        MismatchError: too few train samples for folds.
    """

    def train(
        given: Float32[np.ndarray, "row e"], top: tuple[int, ...]
    ) -> Mapping[int, LayerPredictor]:
        return train_layer_predictors(
            given,
            slope,
            train=rows.train,
            groups=rows.prompt.tolist(),
            letters=rows.letter.tolist(),
            layers=layers,
            settings=replace(settings, top=top),
            device=device,
            on_network=on_network,
        )

    found = {w2s(top): each for top, each in train(embeddings, settings.top).items()}
    traded = _shuffled(embeddings, rows.train, settings.seed)
    control = train(traded, settings.top[:1])
    return found | {SHUFFLED: control[settings.top[0]]}


def choose_layers(
    rows: Rows,
    slopes: SlopeTable,
    *,
    fixed: int | None = None,
    predictors: Mapping[str, LayerPredictor] | None = None,
    embeddings: Float32[np.ndarray, "row e"] | None = None,
) -> Chosen:
    """Choose layers for one behavior in every way.

    Args:
        rows: of the behavior.
        slopes: of these rows.
        fixed: the fixed layer's place, where other slopes than these choose it.
        predictors: as `train_predictors` gives them.
        embeddings: what they read; not needed without them.
    """
    best = best_layers(slopes.slope[rows.train])
    counts = np.bincount(best, minlength=slopes.slope.shape[1])
    places = {}
    if predictors and embeddings is not None:
        places = {name: each.places(embeddings) for name, each in predictors.items()}
    return Chosen(
        rows=rows,
        slopes=slopes,
        fixed=fixed_layer(slopes.slope, rows.train) if fixed is None else fixed,
        frequent=int(counts.argmax()),
        active=active_layers(best).tolist(),
        predictors=predictors or {},
        places=places,
    )


def _shuffled(
    embeddings: Float32[np.ndarray, "row e"], train: Bool[np.ndarray, " row"], seed: int
) -> Float32[np.ndarray, "row e"]:
    """Train samples trade embeddings, so labels keep their frequencies and lose their prompts."""
    order = np.flatnonzero(train)
    traded = embeddings.copy()
    traded[order] = embeddings[np.random.default_rng(seed).permutation(order)]
    return traded
