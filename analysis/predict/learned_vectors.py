"""Learned vectors (L2S): networks of every behavior, and the sweep of what they say.

From a store of pairs to `learned.zarr`: each sample steered with what its behavior's networks make
of its prompt, with the same less the letter direction, and with the difference of its own two
completions, which no prompt could tell. Runs the model, so torch comes in here; refuses to know
which layer is chosen for whom.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float32, Float64, Int64

from actcache.analysis.config import AnalyzeConfig
from actcache.analysis.directions.letter import letter_directions, letter_share, without_letter
from actcache.analysis.predict.l2s.vector_predictor import (
    L2SSettings,
    VectorPredictor,
    default_context_layers,
    train_vector_predictor,
)
from actcache.analysis.predict.reuse import digest_of, identity_of, kept
from actcache.analysis.predict.selections import BehaviorRows
from actcache.analysis.sweep.open_sweep import Sweep
from actcache.analysis.sweep.row_directions import RowDirections
from actcache.analysis.sweep.run import run_sweep
from actcache.engine.model import LanguageModel
from actcache.errors import MismatchError
from actcache.identity import require_same
from actcache.progress import Progress
from actcache.store.store import Store, open_store

LEARNED = "l2s"
"""The set of the networks' vectors."""

WITHOUT_LETTER = "l2s_without_letter"
"""The same with their part along the letter direction taken away."""

ORACLE = "oracle_vectors"
"""Each sample's own difference of residuals."""

FILE = "networks.safetensors"
"""What a behavior's networks are called in their folder."""

_AT_A_TIME = 64  # test samples whose vectors are in memory together


@dataclass(frozen=True, kw_only=True)
class Learned:
    """The networks, their sweep, and how much of their vectors is letter."""

    networks: Mapping[str, VectorPredictor]
    """By behavior."""

    swept: Sweep
    """`<set>/propensity` of `sets`."""

    sets: Sequence[str]
    """LEARNED, WITHOUT_LETTER where there is a letter direction, ORACLE."""

    letter_share: Mapping[str, Float64[np.ndarray, " layer"] | str]
    """By behavior: mean share of the squared norm along the letter direction, over base test
    samples; or in words why there is no letter direction."""

    oracle: str = ORACLE
    """The set that chooses the fixed layer."""


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

    Args:
        folder: where networks and `learned.zarr` are kept; what lies there of the same settings is
            reused, an interrupted sweep is gone on with.
        store: with the positions prompt, positive and negative.
        behaviors: its behaviors and their rows.
        layers: numbers of the layers to steer.
        config: the settings.
        model: gives the store's model; called only if something is still to be swept.
        progress: shows the loops.
        device: where networks are trained.

    Raises:
        MismatchError: a position was not kept, there is no such context layer, or the folder holds
            a sweep of other settings.
    """
    contexts = list(config.context_layers or default_context_layers(store.n_layers))
    if not 0 <= min(contexts) <= max(contexts) < store.n_layers:
        raise MismatchError(
            f"context layers are {contexts}, but the store has layers 0 to {store.n_layers - 1}. "
            "Pass some of them."
        )
    settings = L2SSettings(loss=config.loss, seed=config.seed)
    made_of = {
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
        name: digest_of({name: made_of})
        for name in (LEARNED, ORACLE, WITHOUT_LETTER)
        if name != WITHOUT_LETTER or any(not isinstance(x, str) for x in letter.values())
    }
    path = folder / "learned.zarr"
    if path.exists():  # before minutes of training
        require_same(
            {"sets": digests},
            {"sets": open_store(path).config["sets"]},
            what=f"the settings of '{path}' and of these networks",
            remedy="Choose another folder with -o, or pass --overwrite.",
        )
    networks = {}
    each = len(layers) * len(contexts) * len(settings.rates) * len(settings.components)
    with progress.steps("networks of L2S", each * len(behaviors)) as on_network:

        def load(place: Path) -> VectorPredictor:
            on_network(each)
            return VectorPredictor.load(place / FILE)

        for behavior, rows in behaviors.items():
            networks[behavior] = kept(
                folder / rows.folder / LEARNED,
                made_of,
                load=load,
                make=partial(_train, store, rows, layers, contexts, settings, device, on_network),
                save=lambda place, made: made.save(place / FILE),
            )
    vectors = _Vectors(store, behaviors, networks, layers)
    shares = {
        behavior: direction
        if isinstance(direction, str)
        else vectors.share(behaviors[behavior], direction)
        for behavior, direction in letter.items()
    }
    rows_of = {
        LEARNED: vectors.learned,
        ORACLE: vectors.own,
        WITHOUT_LETTER: lambda at: vectors.less_letter(at, letter),
    }
    sets = {name: RowDirections(rows_of[name], digest) for name, digest in digests.items()}
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


def _train(
    store: Store,
    rows: BehaviorRows,
    layers: Sequence[int],
    context_layers: Sequence[int],
    settings: L2SSettings,
    device: str,
    on_network: Callable[[int], object],
) -> VectorPredictor:
    used = rows.train | rows.validation
    at = rows.at[used]
    positive, negative, prompt = map(store.resid, ("positive", "negative", "prompt"))

    def target(layer: int) -> Float32[np.ndarray, "n d_model"]:
        sides = positive.layer(layer, at), negative.layer(layer, at)
        return np.asarray(np.subtract(*sides, dtype=np.float32))

    def context(layer: int) -> Float32[np.ndarray, "n d_model"]:
        return np.asarray(prompt.layer(layer, at), np.float32)

    return train_vector_predictor(
        target,
        context,
        layers=layers,
        context_layers=context_layers,
        train=rows.train[used],
        validation=rows.validation[used],
        settings=settings,
        device=device,
        on_step=on_network,
    )


class _Vectors:
    """Vectors of any rows, computed when a sweep asks for them."""

    def __init__(
        self,
        store: Store,
        behaviors: Mapping[str, BehaviorRows],
        networks: Mapping[str, VectorPredictor],
        layers: Sequence[int],
    ) -> None:
        self._prompt = store.resid("prompt")
        self._sides = store.resid("positive"), store.resid("negative")
        self._shape = store.n_layers, store.d_model
        self._layers = list(layers)
        self._networks = networks
        self._behavior = np.empty(store.n, object)
        for behavior, rows in behaviors.items():
            self._behavior[rows.at] = behavior

    def learned(self, at: Int64[np.ndarray, " b"]) -> Float32[np.ndarray, "b layer d_model"]:
        """What the networks say of the rows' prompts; zero at layers that are not steered."""
        found = np.zeros((len(at), *self._shape), np.float32)
        for behavior, networks in self._networks.items():
            mine = np.flatnonzero(self._behavior[at] == behavior)
            if mine.size:
                said = networks.directions(partial(self._prompt.layer, rows=at[mine]))
                found[mine[:, None], self._layers] = said
        return found

    def less_letter(
        self,
        at: Int64[np.ndarray, " b"],
        letter: Mapping[str, Float32[np.ndarray, "layer d_model"] | str],
    ) -> Float32[np.ndarray, "b layer d_model"]:
        """The same without their part along each behavior's letter direction, where it has one."""
        found = self.learned(at)
        for behavior, direction in letter.items():
            mine = self._behavior[at] == behavior
            if mine.any() and not isinstance(direction, str):
                found[mine] = without_letter(found[mine], direction)
        return found

    def own(self, at: Int64[np.ndarray, " b"]) -> Float32[np.ndarray, "b layer d_model"]:
        """Positive less negative residual of each row."""
        positive, negative = (side[at] for side in self._sides)
        return np.asarray(np.subtract(positive, negative, dtype=np.float32))

    def share(
        self, rows: BehaviorRows, letter: Float32[np.ndarray, "layer d_model"]
    ) -> Float64[np.ndarray, " layer"]:
        """Mean `letter_share` over a behavior's base test samples, at the steered layers."""
        at = rows.at[rows.test & (rows.variant == "base")]
        total = np.zeros(len(self._layers))
        for start in range(0, len(at), _AT_A_TIME):
            vectors = self.learned(at[start : start + _AT_A_TIME])
            total += letter_share(vectors, letter)[:, self._layers].sum(0)
        return np.asarray(total / len(at))


def _mask(
    store: Store, rows: BehaviorRows, chosen: Bool[np.ndarray, " row"]
) -> Bool[np.ndarray, " n"]:
    return np.isin(np.arange(store.n), rows.at[chosen])
