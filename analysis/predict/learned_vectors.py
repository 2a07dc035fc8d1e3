"""Learned vectors (L2S): networks of every behavior, and the sweep of what they predict.

From a store of pairs to `learned.zarr`: each sample is steered with what its behavior's networks
predict from its prompt (train samples: networks that never saw them), with the same without its
part along the letter direction, and with the difference of its own two completions, which no prompt
could tell. The sweep runs the model.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float32, Float64, Int64

from actcache.analysis.config import AnalyzeConfig
from actcache.analysis.directions.letter import letter_directions, letter_share, without_letter
from actcache.analysis.names import L2S, L2S_WITHOUT_LETTER, OWN_DIFFERENCE
from actcache.analysis.predict.l2s.settings import L2SSettings, default_context_layers
from actcache.analysis.predict.l2s.vector_predictor import FILE, VectorPredictor
from actcache.analysis.predict.reuse import digest_of, identity_of, load_or_make
from actcache.analysis.predict.selections import BehaviorRows
from actcache.analysis.predict.unseen_vectors import FOLDS, FoldNetworks, fold_networks
from actcache.analysis.sweep.open_sweep import Sweep
from actcache.analysis.sweep.row_directions import RowDirections
from actcache.analysis.sweep.run import run_sweep
from actcache.engine.model import LanguageModel
from actcache.errors import MismatchError
from actcache.identity import require_same
from actcache.progress import Progress, Silent
from actcache.store.store import Store, open_store

_AT_A_TIME = 64  # test samples whose vectors are in memory together


@dataclass(frozen=True, kw_only=True)
class Learned:
    """The networks, their sweep, and the letter's share of their vectors."""

    networks: Mapping[str, VectorPredictor]
    """By behavior."""

    swept: Sweep
    """`<set>/propensity` of `sets`."""

    sets: Sequence[str]
    """L2S, L2S_WITHOUT_LETTER where there is a letter direction, OWN_DIFFERENCE."""

    letter_share: Mapping[str, Float64[np.ndarray, " layer"] | str]
    """By behavior: mean share of the squared norm along the letter direction, over base test
    samples; or in words why there is no letter direction."""


def learn_vectors(
    folder: Path,
    store: Store,
    behaviors: Mapping[str, BehaviorRows],
    *,
    layers: Sequence[int],
    config: AnalyzeConfig,
    model: Callable[[], LanguageModel],
    progress: Progress,
    device: str = "cpu",
) -> Learned:
    """Train each behavior's networks on its train samples, and sweep all rows with their vectors.

    Networks and `learned.zarr` of the same settings in `folder` are reused, an interrupted sweep is
    resumed. `store` has the positions prompt, positive and negative; `layers` are to be steered.
    """
    contexts = list(config.context_layers or default_context_layers(store.n_layers))
    if not 0 <= min(contexts) <= max(contexts) < store.n_layers:
        raise MismatchError(
            f"context layers are {contexts}, but the store has layers 0 to {store.n_layers - 1}. "
            "Pass some of them."
        )
    settings = L2SSettings(loss=config.loss, seed=config.seed)
    fingerprint = {
        "store": identity_of(store),
        "settings": settings,
        "layers": list(layers),
        "context_layers": contexts,
    }
    letter = {
        behavior: letter_directions(store, rows=_mask(store, rows, rows.train))
        for behavior, rows in behaviors.items()
    }
    digests = {
        name: digest_of({name: fingerprint, "folds": FOLDS})
        for name in (L2S, OWN_DIFFERENCE, L2S_WITHOUT_LETTER)
        if name != L2S_WITHOUT_LETTER or any(not isinstance(x, str) for x in letter.values())
    }
    path = folder / "learned.zarr"
    if path.exists():  # before minutes of training
        require_same(
            {"sets": digests},
            {"sets": open_store(path).config["sets"]},
            what=f"the settings of '{path}' and of these networks",
            remedy="Choose another folder with -o, or pass --overwrite.",
        )
    networks: dict[str, VectorPredictor] = {}
    folds: dict[str, list[FoldNetworks]] = {}
    n_networks = len(layers) * len(contexts) * len(settings.rates) * len(settings.components)
    with progress.steps("networks of L2S", n_networks * len(behaviors)) as on_network:

        def load(place: Path) -> VectorPredictor:
            on_network(n_networks)
            return VectorPredictor.load(place / FILE)

        for behavior, rows in behaviors.items():
            networks[behavior] = load_or_make(
                folder / rows.folder / L2S,
                fingerprint,
                load=load,
                make=partial(
                    VectorPredictor.fit,
                    store,
                    rows=_mask(store, rows, rows.train),
                    validation=_mask(store, rows, rows.validation),
                    layers=layers,
                    context_layers=contexts,
                    settings=settings,
                    device=device,
                    progress=_SharedBar(on_network),
                ),
                save=lambda place, made: made.save(place / FILE),
            )
    with progress.steps("networks of L2S by fold", len(behaviors)) as on_behavior:
        for behavior, rows in behaviors.items():
            folds[behavior] = fold_networks(
                folder / rows.folder,
                store,
                rows,
                networks[behavior],
                fingerprint=fingerprint,
                device=device,
            )
            on_behavior(1)
    vectors = _Vectors(store, behaviors, networks, folds, layers)
    shares = {
        behavior: direction
        if isinstance(direction, str)
        else vectors.letter_share(behaviors[behavior], direction)
        for behavior, direction in letter.items()
    }
    vectors_of: dict[str, Callable[[Int64[np.ndarray, " b"]], np.ndarray]] = {
        L2S: vectors.learned,
        OWN_DIFFERENCE: vectors.oracle,
        L2S_WITHOUT_LETTER: partial(vectors.without_letter, letter=letter),
    }
    sets = {name: RowDirections(vectors_of[name], digest) for name, digest in digests.items()}
    swept = run_sweep(
        store,
        sets,
        multipliers=config.multipliers,
        out=path,
        model=model,
        first_steered=config.first_steered,
        score=config.score,
        layers=layers,
        batch_tokens=config.batch_tokens,
        progress=progress,
        title="sweep of learned vectors",
    )
    return Learned(networks=networks, swept=swept, sets=list(sets), letter_share=shares)


class _SharedBar(Silent):
    """Moves a bar that is open already, one for the networks of all behaviors."""

    def __init__(self, on_network: Callable[[int], None]) -> None:
        self._on_network = on_network

    @contextmanager
    def steps(self, title: str, total: int | None) -> Iterator[Callable[[int], None]]:
        """Open no other bar."""
        yield self._on_network


class _Vectors:
    """Vectors of any rows, computed when a sweep asks for them."""

    def __init__(
        self,
        store: Store,
        behaviors: Mapping[str, BehaviorRows],
        networks: Mapping[str, VectorPredictor],
        folds: Mapping[str, Sequence[FoldNetworks]],
        layers: Sequence[int],
    ) -> None:
        self._prompt = store.resid("prompt")
        self._pair = store.resid("positive"), store.resid("negative")
        self._shape = store.n_layers, store.d_model
        self._layers = list(layers)
        self._networks = networks
        self._folds = [fold for of_behavior in folds.values() for fold in of_behavior]
        self._behavior = np.empty(store.n, object)
        for behavior, rows in behaviors.items():
            self._behavior[rows.at] = behavior

    def learned(
        self, row_numbers: Int64[np.ndarray, " b"]
    ) -> Float32[np.ndarray, "b layer d_model"]:
        """Predict from the rows' prompts, by networks that never saw the row.

        Zero at layers that are not steered.
        """
        vectors = np.zeros((len(row_numbers), *self._shape), np.float32)
        for behavior, networks in self._networks.items():
            places = np.flatnonzero(self._behavior[row_numbers] == behavior)
            if places.size:
                contexts = partial(self._prompt.layer, rows=row_numbers[places])
                vectors[places[:, None], self._layers] = networks.directions(contexts)
        for fold in self._folds:
            places = np.flatnonzero(np.isin(row_numbers, fold.rows))
            if places.size:
                contexts = partial(self._prompt.layer, rows=row_numbers[places])
                vectors[places[:, None], self._layers] = fold.directions(contexts, self._layers)
        return vectors

    def without_letter(
        self,
        row_numbers: Int64[np.ndarray, " b"],
        letter: Mapping[str, Float32[np.ndarray, "layer d_model"] | str],
    ) -> Float32[np.ndarray, "b layer d_model"]:
        """Predict likewise, without the part along the behavior's letter direction, if any."""
        vectors = self.learned(row_numbers)
        for behavior, direction in letter.items():
            mine = self._behavior[row_numbers] == behavior
            if mine.any() and not isinstance(direction, str):
                vectors[mine] = without_letter(vectors[mine], direction)
        return vectors

    def oracle(
        self, row_numbers: Int64[np.ndarray, " b"]
    ) -> Float32[np.ndarray, "b layer d_model"]:
        """Positive minus negative residual of each row."""
        positive, negative = (residuals[row_numbers] for residuals in self._pair)
        return np.asarray(np.subtract(positive, negative, dtype=np.float32))

    def letter_share(
        self, rows: BehaviorRows, letter: Float32[np.ndarray, "layer d_model"]
    ) -> Float64[np.ndarray, " layer"]:
        """Mean `letter_share` over a behavior's base test samples, at the steered layers."""
        row_numbers = rows.at[rows.test & (rows.variant == "base")]
        total = np.zeros(len(self._layers))
        for start in range(0, len(row_numbers), _AT_A_TIME):
            vectors = self.learned(row_numbers[start : start + _AT_A_TIME])
            total += letter_share(vectors, letter)[:, self._layers].sum(0)
        return np.asarray(total / len(row_numbers))


def _mask(
    store: Store, rows: BehaviorRows, chosen: Bool[np.ndarray, " row"]
) -> Bool[np.ndarray, " n"]:
    return np.isin(np.arange(store.n), rows.at[chosen])
