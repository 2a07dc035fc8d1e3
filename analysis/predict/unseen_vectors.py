"""L2S vectors of train samples, from networks that never saw them.

A network fits its own train samples better than others, so that slopes along its vectors are
larger there than on test samples. What is learned from such slopes (labels of W2S, its value in
cross-validation) would be of vectors that no new prompt gets. So each fold of train samples gets
its vectors from networks that were trained on the other folds. A layer keeps the context layer, the
components and the rate that were chosen with all train samples.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float32, Int64

from actcache.analysis.names import L2S
from actcache.analysis.predict.adamw_stack import training_device
from actcache.analysis.predict.l2s.settings import L2SSettings
from actcache.analysis.predict.l2s.vector_predictor import FILE, VectorPredictor
from actcache.analysis.predict.reuse import Artifact, load_or_make
from actcache.analysis.predict.selections import BehaviorRows
from actcache.analysis.predict.w2s.folds import grouped_folds
from actcache.analysis.stats.units import MapUnits
from actcache.progress import SILENT, Progress
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


@dataclass(frozen=True, kw_only=True)
class _Training:
    """Networks of one fold that share a context layer, components and rate."""

    train: Int64[np.ndarray, " train"]
    validation: Int64[np.ndarray, " validation"]
    """Numbers in the store of the samples that they learn from, and that choose among them."""

    layers: Sequence[int]
    context_layer: int
    settings: L2SSettings


def fold_networks(
    folder: Path,
    store: Store,
    behaviors: Mapping[str, BehaviorRows],
    chosen: Mapping[str, VectorPredictor],
    *,
    fingerprint: Mapping[str, Any],
    device: str,
    progress: Progress = SILENT,
    map_units: MapUnits = map,
) -> list[FoldNetworks]:
    """Train, or load from `folder`, the networks of every fold of the behaviors' train samples.

    `chosen` has by behavior the networks of all train samples; `map_units` runs the trainings.
    """
    folds = [
        (held_out, artifacts)
        for behavior, rows in behaviors.items()
        for held_out, artifacts in _folds(folder / rows.folder, rows, chosen[behavior], fingerprint)
    ]
    artifacts = [artifact for _, of_fold in folds for artifact in of_fold]
    with progress.steps("networks of L2S by fold", len(artifacts)) as on_trained:
        networks = iter(
            load_or_make(
                artifacts,
                load=lambda place: VectorPredictor.load(place / FILE),
                make=partial(_train, store, device),
                save=lambda place, made: made.save(place / FILE),
                on_done=partial(on_trained, 1),
                map_units=map_units,
            )
        )
    return [
        FoldNetworks(rows=held_out, networks=[next(networks) for _ in of_fold])
        for held_out, of_fold in folds
    ]


def _folds(
    folder: Path, rows: BehaviorRows, chosen: VectorPredictor, fingerprint: Mapping[str, Any]
) -> Iterator[tuple[Int64[np.ndarray, " fold"], list[Artifact[_Training]]]]:
    """Split a behavior's train samples: those of each fold, and the networks of the others."""
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
    for number in range(int(fold.max()) + 1):
        artifacts = []
        for i, choice in enumerate(dict.fromkeys(choices)):
            context_layer, components, rate = choice
            layers = zip(chosen.layers.tolist(), choices, strict=True)
            training = _Training(
                train=train[fold != number],
                validation=rows.at[rows.validation],
                layers=[layer for layer, of_layer in layers if of_layer == choice],
                context_layer=context_layer,
                settings=replace(chosen.settings, components=(components,), rates=(rate,)),
            )
            artifacts.append(
                Artifact(
                    folder=folder / f"{L2S}-fold-{number}-{i}",
                    fingerprint={**fingerprint, "fold": number, "choice": list(choice)},
                    unit=training,
                )
            )
        yield train[fold == number], artifacts


def _train(store: Store, device: str, training: _Training) -> VectorPredictor:
    return VectorPredictor.fit(
        store,
        rows=_mask(store, training.train),
        validation=_mask(store, training.validation),
        layers=training.layers,
        context_layers=[training.context_layer],
        settings=training.settings,
        device=training_device(device),
    )


def _mask(store: Store, rows: Int64[np.ndarray, " _"]) -> Bool[np.ndarray, " n"]:
    return np.isin(np.arange(store.n), rows)
