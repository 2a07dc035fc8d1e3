"""Learned vectors (L2S): networks of every behavior, and what each row is steered with.

From a store of pairs, before any sweep: each sample is steered with what its behavior's networks
predict from its prompt (train samples: networks that never saw them), with the same without its
part along the letter direction, and with the difference of its own two completions, which no prompt
could tell.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float32, Float64, Int64

from actcache.analysis.config import AnalyzeConfig
from actcache.analysis.directions.letter import letter_directions, letter_share, without_letter
from actcache.analysis.names import L2S, L2S_WITHOUT_LETTER, OWN_DIFFERENCE
from actcache.analysis.predict.adamw_stack import training_device
from actcache.analysis.predict.l2s.settings import L2SSettings, default_context_layers
from actcache.analysis.predict.l2s.vector_predictor import FILE, VectorPredictor
from actcache.analysis.predict.reuse import Artifact, digest_of, identity_of, load_or_make
from actcache.analysis.predict.selections import BehaviorRows
from actcache.analysis.predict.unseen_vectors import FOLDS, FoldNetworks, fold_networks
from actcache.analysis.stats.units import MapUnits, UnitSteps
from actcache.analysis.sweep.row_directions import RowDirections
from actcache.errors import MismatchError
from actcache.progress import Progress, Silent
from actcache.store.store import Store

_AT_A_TIME = 64  # test samples whose vectors are in memory together


class LearnedVectors:
    """What each row of a store is steered with: by its networks, or by its own two completions.

    Which sets there are, and what identifies them, is known at once; their vectors can be asked for
    after `train`.
    """

    def __init__(
        self,
        store: Store,
        behaviors: Mapping[str, BehaviorRows],
        *,
        layers: Sequence[int],
        config: AnalyzeConfig,
        map_units: MapUnits = map,
    ) -> None:
        """Describe the vectors of `behaviors`, which are trained and asked for later.

        The store has the positions prompt, positive and negative; `layers` are to be steered.
        `map_units` runs the groups of `store_moments`.
        """
        contexts = list(config.context_layers or default_context_layers(store.n_layers))
        if not 0 <= min(contexts) <= max(contexts) < store.n_layers:
            raise MismatchError(
                f"context layers are {contexts}, but the store has layers 0 to "
                f"{store.n_layers - 1}. Pass some of them."
            )
        self._store, self._behaviors = store, behaviors
        self._layers, self._contexts = list(layers), contexts
        self._settings = L2SSettings(loss=config.loss, seed=config.seed)
        self._fingerprint = {
            "store": identity_of(store),
            "settings": self._settings,
            "layers": self._layers,
            "context_layers": contexts,
        }
        self._letter = {
            behavior: letter_directions(
                store, rows=_mask(store, rows, rows.train), map_units=map_units
            )
            for behavior, rows in behaviors.items()
        }
        self._behavior = np.empty(store.n, object)
        for behavior, rows in behaviors.items():
            self._behavior[rows.at] = behavior
        self.networks: dict[str, VectorPredictor] = {}
        """By behavior."""
        self._folds: list[FoldNetworks] = []

    @property
    def sets(self) -> dict[str, RowDirections]:
        """L2S, OWN_DIFFERENCE, and L2S_WITHOUT_LETTER where there is a letter direction."""
        vectors_of: dict[str, Callable[[Int64[np.ndarray, " b"]], np.ndarray]] = {
            L2S: self.learned,
            OWN_DIFFERENCE: self.own_differences,
        }
        if any(not isinstance(direction, str) for direction in self._letter.values()):
            vectors_of[L2S_WITHOUT_LETTER] = self.without_letter
        return {
            name: RowDirections(vectors, digest_of({name: self._fingerprint, "folds": FOLDS}))
            for name, vectors in vectors_of.items()
        }

    def train(
        self,
        folder: Path,
        *,
        progress: Progress,
        device: str = "cpu",
        map_units: MapUnits = map,
    ) -> None:
        """Train each behavior's networks on its train samples, or load what lies in `folder`.

        `map_units` runs the behaviors, then the folds of all.
        """
        settings, behaviors = self._settings, self._behaviors
        n_networks = len(self._layers) * len(self._contexts)
        n_networks *= len(settings.rates) * len(settings.components)
        artifacts = [
            Artifact(
                folder=folder / rows.folder / L2S,
                fingerprint=self._fingerprint,
                unit=rows,
            )
            for rows in behaviors.values()
        ]
        with progress.steps("networks of L2S", n_networks * len(behaviors)) as advance:
            steps = UnitSteps(advance, of_unit=n_networks)
            networks = load_or_make(
                artifacts,
                load=lambda place: VectorPredictor.load(place / FILE),
                make=partial(
                    _train,
                    self._store,
                    layers=self._layers,
                    context_layers=self._contexts,
                    settings=settings,
                    device=device,
                    progress=_SharedBar(steps),
                ),
                save=lambda place, made: made.save(place / FILE),
                on_done=steps.finish_unit,
                map_units=map_units,
            )
        self.networks = dict(zip(behaviors, networks, strict=True))
        self._folds = fold_networks(
            folder,
            self._store,
            behaviors,
            self.networks,
            fingerprint=self._fingerprint,
            device=device,
            progress=progress,
            map_units=map_units,
        )

    def learned(
        self, row_numbers: Int64[np.ndarray, " b"]
    ) -> Float32[np.ndarray, "b layer d_model"]:
        """Predict from the rows' prompts, by networks that never saw the row.

        Zero at layers that are not steered.
        """
        prompt = self._store.resid("prompt")
        shape = (len(row_numbers), self._store.n_layers, self._store.d_model)
        vectors = np.zeros(shape, np.float32)
        for behavior, networks in self.networks.items():
            places = np.flatnonzero(self._behavior[row_numbers] == behavior)
            if places.size:
                contexts = partial(prompt.layer, rows=row_numbers[places])
                vectors[places[:, None], self._layers] = networks.directions(contexts)
        for fold in self._folds:
            places = np.flatnonzero(np.isin(row_numbers, fold.rows))
            if places.size:
                contexts = partial(prompt.layer, rows=row_numbers[places])
                vectors[places[:, None], self._layers] = fold.directions(contexts, self._layers)
        return vectors

    def without_letter(
        self, row_numbers: Int64[np.ndarray, " b"]
    ) -> Float32[np.ndarray, "b layer d_model"]:
        """Predict likewise, without the part along the behavior's letter direction, if any."""
        vectors = self.learned(row_numbers)
        for behavior, direction in self._letter.items():
            of_behavior = self._behavior[row_numbers] == behavior
            if of_behavior.any() and not isinstance(direction, str):
                vectors[of_behavior] = without_letter(vectors[of_behavior], direction)
        return vectors

    def own_differences(
        self, row_numbers: Int64[np.ndarray, " b"]
    ) -> Float32[np.ndarray, "b layer d_model"]:
        """Positive minus negative residual of each row."""
        pair = [self._store.resid(side)[row_numbers] for side in ("positive", "negative")]
        return np.asarray(np.subtract(*pair, dtype=np.float32))

    def letter_share(self, behavior: str) -> Float64[np.ndarray, " layer"] | str:
        """Mean share of the squared norm along the letter direction, over base test samples.

        At the steered layers; or in words why there is no letter direction.
        """
        letter, rows = self._letter[behavior], self._behaviors[behavior]
        if isinstance(letter, str):
            return letter
        row_numbers = rows.at[rows.test & (rows.variant == "base")]
        total = np.zeros(len(self._layers))
        for start in range(0, len(row_numbers), _AT_A_TIME):
            vectors = self.learned(row_numbers[start : start + _AT_A_TIME])
            total += letter_share(vectors, letter)[:, self._layers].sum(0)
        return np.asarray(total / len(row_numbers))


def _train(store: Store, rows: BehaviorRows, *, device: str, **settings: Any) -> VectorPredictor:
    """Train the networks of one behavior."""
    return VectorPredictor.fit(
        store,
        rows=_mask(store, rows, rows.train),
        validation=_mask(store, rows, rows.validation),
        device=training_device(device),
        **settings,
    )


class _SharedBar(Silent):
    """Moves a bar that is open already, one for the networks of all behaviors."""

    def __init__(self, on_network: Callable[[int], None]) -> None:
        self._on_network = on_network

    @contextmanager
    def steps(self, title: str, total: int | None) -> Iterator[Callable[[int], None]]:
        """Open no other bar."""
        yield self._on_network


def _mask(
    store: Store, rows: BehaviorRows, chosen: Bool[np.ndarray, " row"]
) -> Bool[np.ndarray, " n"]:
    return np.isin(np.arange(store.n), rows.at[chosen])
