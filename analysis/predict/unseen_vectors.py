"""L2S vectors of train samples, from networks that never saw them.

A network fits its own train samples better than others, so that slopes along its vectors are
larger there than on test samples. What is learned from such slopes (labels of W2S, its value in
cross-validation) would be of vectors that no new prompt gets. So each fold of train samples gets
its vectors from networks that were trained on the other folds. A layer keeps the context layer, the
components and the rate that were chosen with all train samples.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float32, Int64

from actcache.analysis.names import L2S
from actcache.analysis.predict.l2s.vector_predictor import VectorPredictor
from actcache.analysis.predict.reuse import load_or_make
from actcache.analysis.predict.selections import BehaviorRows
from actcache.analysis.predict.w2s.folds import grouped_folds
from actcache.store.store import Store

FOLDS = 5
"""Parts that train samples are split into, fewer where there are fewer distinct prompts."""


@dataclass(frozen=True, kw_only=True)
class FoldNetworks:
    """The networks of one fold: trained on the others."""

    rows: Int64[np.ndarray, " fold"]
    """Numbers in the store of the samples that these networks never saw."""

    networks: Sequence[VectorPredictor]
    """One for the layers that share a context layer, components and rate; together all layers."""

    def directions(
        self, contexts: Callable[[int], Float32[np.ndarray, "b d_model"]], layers: Sequence[int]
    ) -> Float32[np.ndarray, "b layer d_model"]:
        """Predict as `VectorPredictor.directions` does, for `layers`."""
        parts = [network.directions(contexts) for network in self.networks]
        order = [layer for network in self.networks for layer in network.layers.tolist()]
        return np.concatenate(parts, axis=1)[:, [order.index(layer) for layer in layers]]


def fold_networks(
    folder: Path,
    store: Store,
    rows: BehaviorRows,
    chosen: VectorPredictor,
    *,
    fingerprint: Mapping[str, Any],
    device: str,
) -> list[FoldNetworks]:
    """Train, or load from `folder`, the networks of every fold of a behavior's train samples."""
    train = rows.at[rows.train]
    fold = grouped_folds(
        rows.prompt[rows.train].tolist(),
        rows.letter[rows.train].tolist(),
        n_folds=FOLDS,
        seed=chosen.settings.seed,
    )
    choices = list(
        zip(
            chosen.context_layer.tolist(),
            chosen.components.tolist(),
            chosen.rate.tolist(),
            strict=True,
        )
    )
    folds = []
    for number in range(int(fold.max()) + 1):
        held_out = np.isin(np.arange(store.n), train[fold == number])
        networks = []
        for i, choice in enumerate(dict.fromkeys(choices)):
            context_layer, components, rate = choice
            place = folder / f"{L2S}-fold-{number}-{i}"
            networks.append(
                load_or_make(
                    place,
                    {**fingerprint, "fold": number, "choice": list(choice)},
                    load=lambda place: VectorPredictor.load(place / "networks.safetensors"),
                    make=partial(
                        VectorPredictor.fit,
                        store,
                        rows=_mask(store, train) & ~held_out,
                        validation=_mask(store, rows.at[rows.validation]),
                        layers=[
                            layer
                            for layer, of_layer in zip(chosen.layers.tolist(), choices, strict=True)
                            if of_layer == choice
                        ],
                        context_layers=[context_layer],
                        settings=replace(chosen.settings, components=(components,), rates=(rate,)),
                        device=device,
                    ),
                    save=lambda place, made: made.save(place / "networks.safetensors"),
                )
            )
        folds.append(FoldNetworks(rows=np.flatnonzero(held_out), networks=networks))
    return folds


def _mask(store: Store, rows: Int64[np.ndarray, " _"]) -> Bool[np.ndarray, " n"]:
    return np.isin(np.arange(store.n), rows)
