"""What the methods take of one behavior: directions, layers, plane, and steerings made of them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Bool, Float, Float32, Float64

from actcache.analysis.directions.discriminative import mean_cosine
from actcache.analysis.directions.planes import Plane, find_plane
from actcache.analysis.names import CAA
from actcache.analysis.results import Results
from actcache.errors import MismatchError
from actcache.steering.checks import Operator, SteeredTokens, SteeringSite
from actcache.steering.source import SteeringSource
from actcache.steering.steering import AnySteering, Steering, SteeringSum
from actcache.store.store import Store

if TYPE_CHECKING:  # imports torch
    from actcache.engine.model import LanguageModel

LAYER_WORDS = ("fixed", "predicted", "discriminative")


@dataclass(frozen=True, kw_only=True)
class MethodSettings:
    """What is the same for all methods and behaviors of a run."""

    layers: str | Sequence[int] = "fixed"
    """Layers of methods that steer few: one of `LAYER_WORDS`, or numbers, which also limit
    rotations to the norm outputs of these blocks."""

    tokens: SteeredTokens | None = None
    """None: each method's own."""

    window: tuple[int, int | None] | None = None
    whole_blocks: bool = True
    """Steer a block's norm outputs only where all of them are discriminative (Selective Steering's
    code), or each that is (its paper)."""

    contrast: tuple[str, str] | None = None
    """Two texts whose difference ActAdd adds; by default persona sentences, if there are any."""

    seed: int = 0
    model: "Callable[[], LanguageModel]" = field(repr=False)
    """The store's model; called only for ActAdd."""


@dataclass(frozen=True, kw_only=True, eq=False)
class BehaviorInputs:
    """One behavior's directions in OUT, and the rows that made them."""

    results: Results
    store: Store
    behavior: str
    settings: MethodSettings

    @property
    def labels(self) -> tuple[str, str] | None:
        """The positive and the negative label; None of pairs."""
        return self.results.summary.labels

    @cached_property
    def rows(self) -> Bool[np.ndarray, " n"]:
        """Its unframed rows in the store; of labels, the rows of either."""
        base = self.store["variant"] == "base"
        if self.labels:
            return np.asarray(base & np.isin(self.store["label"], self.labels))
        return np.asarray(base & (self.store["behavior"] == self.behavior))

    @property
    def train(self) -> Bool[np.ndarray, " n"]:
        """Those that directions and planes are made of."""
        return np.asarray(self.rows & (self.store["split"] == "train"))

    @cached_property
    def direction(self) -> Float32[np.ndarray, "layer d"]:
        """Its difference of means at every layer."""
        try:
            return self.results.directions[self.behavior]
        except KeyError:
            raise MismatchError(
                f"'{self.results.path}' has no direction of '{self.behavior}', expected one of "
                f"{', '.join(self.results.directions)}. Pass one of these."
            ) from None

    @cached_property
    def plane(self) -> Plane:
        """Its plane and discriminative norm outputs, on train rows."""
        return find_plane(
            self.store,
            rows=self.train,
            labels=self.labels,
            normalize=self.results.summary.config.normalize,
        )

    @cached_property
    def fixed_layer(self) -> int:
        """The layer with the largest mean slope on train rows.

        Labelled prompts have no sweep: theirs is the layer whose direction agrees most with those
        of all layers.
        """
        if self.labels:
            return int(mean_cosine(self.direction).argmax())
        scores = self.results.summary.behaviors.get(self.behavior)
        if scores is None:
            raise MismatchError(
                f"'{self.results.path}' names no fixed layer of '{self.behavior}', expected what "
                "the stage sweep chooses. Run analyze with --stages vectors,sweep, or pass layers."
            )
        return scores.fixed_layer

    def rng(self, purpose: str) -> np.random.Generator:
        """A random stream of its own for every seed, behavior and purpose."""
        return np.random.default_rng([self.settings.seed, *f"{self.behavior}/{purpose}".encode()])

    def steering(
        self,
        operator: Operator,
        site: SteeringSite,
        layers: Sequence[int],
        vectors: Float[np.ndarray, "k ..."],
        *,
        method: str,
        tokens: SteeredTokens,
        **fields: Any,
    ) -> Steering:
        """Make one steering; `tokens` hold where the settings say none."""
        return Steering(
            operator=operator,
            site=site,
            layers=tuple(int(layer) for layer in layers),
            vectors=np.asarray(vectors, np.float32),
            tokens=self.settings.tokens or tokens,
            window=self.settings.window,
            source=SteeringSource.from_provenance(
                self.store.provenance,
                store_sha256=self.store.digest,
                behavior=self.behavior,
                split="train",
                method=method,
            ),
            **fields,
        )


@dataclass(frozen=True, kw_only=True)
class ChosenLayers:
    """Which layers are steered, of every row."""

    selection: str
    """What tables call the choice."""

    of_row: Callable[[int | None], tuple[int, ...]] = field(repr=False)
    """Layers by row of the store; none of a prompt that is not in it, where rows may differ."""

    notes: tuple[str, ...] = ()

    @property
    def per_row(self) -> bool:
        """Whether rows may differ."""
        return self.selection.startswith("predicted")


def chosen_layers(
    inputs: BehaviorInputs, *, fixed: int | None = None, vectors: str = CAA
) -> ChosenLayers:
    """Find the layers that the settings choose for a behavior.

    Args:
        inputs: the behavior.
        fixed: its fixed layer, where it is not that of its difference of means.
        vectors: direction set whose predictor chooses (`predicted`).

    Raises:
        MismatchError: OUT or the store lack what the choice needs.
    """
    asked_layers = inputs.settings.layers
    if asked_layers == "predicted":
        return predicted_layers(inputs, vectors=vectors)
    if asked_layers == "discriminative":
        layers = tuple(inputs.plane.scores.selected_layers)
        if not layers:
            raise MismatchError(
                f"no block of '{inputs.behavior}' has norm outputs that are all discriminative, "
                "expected some to steer. Pass --layers with numbers, or fixed."
            )
        return ChosenLayers(selection="discriminative", of_row=lambda _row: layers)
    if isinstance(asked_layers, str):
        layer = inputs.fixed_layer if fixed is None else fixed
        notes = ("the layer whose direction agrees most with those of all",) * bool(inputs.labels)
        return ChosenLayers(selection="fixed", of_row=lambda _row: (layer,), notes=notes)
    numbers = tuple(int(layer) for layer in asked_layers)
    require_layers(numbers, inputs.store.n_layers)
    return ChosenLayers(selection=list_selection(numbers), of_row=lambda _row: numbers)


def list_selection(layers: Sequence[int]) -> str:
    """What tables call a list of layers."""
    return f"layer{'s' * (len(layers) > 1)} {', '.join(map(str, layers))}"


def require_layers(layers: Sequence[int], n_layers: int) -> None:
    """Refuse layers that the model does not have, or that do not ascend."""
    if (
        not layers
        or list(layers) != sorted(set(layers))
        or not 0 <= layers[0] <= layers[-1] < n_layers
    ):
        raise MismatchError(
            f"layers are {list(layers)}, expected some of 0 to {n_layers - 1}, each once and "
            "ascending. Pass such numbers."
        )


def predicted_layers(inputs: BehaviorInputs, *, vectors: str) -> ChosenLayers:
    """Take the layer that W2S predicts for each row.

    Its trainings vote; the lowest of equals wins.
    """
    scores = inputs.results.summary.predictors
    behaviors = scores.behaviors if scores is not None else ()
    trained = scores.sets.get(vectors) if scores is not None else None
    if trained is None or trained.primary is None or inputs.behavior not in behaviors:
        raise MismatchError(
            f"'{inputs.results.path}' has no layer predictor of '{vectors}' for "
            f"'{inputs.behavior}', expected one to choose layers. Run analyze with the stages "
            f"sweep and predictors, and --vectors {vectors}."
        )
    path = inputs.results.path / "predictors.npz"
    with np.load(path, allow_pickle=False) as arrays:
        ids, layers = arrays["id"], arrays[f"{vectors}/{trained.primary}/layer"]  # [seed, n]
    if not np.array_equal(ids, inputs.store["id"]):
        raise MismatchError(
            f"'{path}' has other rows than '{inputs.store.path}', expected those of the store. "
            "Run the stage predictors again."
        )

    def of_row(row: int | None) -> tuple[int, ...]:
        if row is None:
            return ()
        return (int(np.bincount(layers[:, row]).argmax()),)

    return ChosenLayers(selection="predicted", of_row=of_row, notes=(f"by {trained.primary}",))


def summed(parts: Sequence[Steering]) -> AnySteering:
    """One steering of several parts."""
    return parts[0] if len(parts) == 1 else SteeringSum(tuple(parts))


def unit_vector(vector: Float[np.ndarray, " d"]) -> Float64[np.ndarray, " d"]:
    """Scale a vector that is not zero to norm 1, in float64."""
    wide = np.asarray(vector, np.float64)
    return np.asarray(wide / np.linalg.norm(wide))
