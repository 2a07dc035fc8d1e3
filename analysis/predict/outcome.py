"""What the stage `predictors` computes: scores of every strategy, training, networks, encoders."""

from dataclasses import dataclass
from typing import Any

from actcache.analysis.predict.w2s.settings import ChosenSetting, W2SSettings
from actcache.analysis.stats.bootstrap import Interval
from actcache.analysis.sweep.strategies import StrategyScore


@dataclass(frozen=True, kw_only=True)
class VariantScores:
    """Every strategy on the test samples of one variant, by the strategy's key."""

    mean: dict[str, StrategyScore]
    """Mean over behaviors, each counting the same."""

    behaviors: dict[str, dict[str, StrategyScore]]


@dataclass(frozen=True, kw_only=True)
class TrainingScore:
    """What cross-validation on train samples said of one layer predictor."""

    active_layers: tuple[int, ...]
    """Layers that are the (smoothed) best one of some train sample."""

    chosen: ChosenSetting
    n_folds: int

    cv_value: float
    """Mean slope at the layers predicted for held-out folds; biased by choosing the setting."""

    cv_crossfit: float
    """The same without that bias (BBC-CV)."""

    cv_fixed: float
    """Mean slope at one layer for all, chosen in each fold's own train part."""

    cv_gain: float
    cv_gain_error: float


@dataclass(frozen=True, kw_only=True)
class DirectionSetScores:
    """What choosing the layer is worth with one set of directions."""

    fixed_layer: dict[str, int]
    """By behavior."""

    primary: str | None
    """Key of the predictor that gained most in cross-validation; None where none was trained."""

    variants: dict[str, VariantScores]

    by_letter: dict[str, dict[str, StrategyScore]]
    """By letter of the positive completion, then strategy; mean over behaviors, base prompts."""

    over_shuffled: Interval | None
    """Gain of the primary predictor over the one that was trained on shuffled prompts."""

    training: dict[str, dict[str, TrainingScore]]
    """By behavior, then predictor."""

    accuracy: dict[str, dict[str, float]]
    """By behavior, then predictor: share of base test samples whose best layer is predicted."""

    oracle_distance: dict[str, float]
    """By behavior: mean distance in layers of a base test sample's best layer from the fixed
    one."""

    @property
    def base(self) -> VariantScores:
        """Prompts as they are."""
        return self.variants["base"]


@dataclass(frozen=True, kw_only=True)
class NetworkLayers:
    """The networks of one behavior at each steered layer."""

    context_layer: tuple[int, ...]
    validation_loss: tuple[float, ...]
    mean_loss: tuple[float, ...]
    letter_share: tuple[float, ...] | None


@dataclass(frozen=True, kw_only=True)
class NetworkScore:
    """The network of one behavior (L2S) at its fixed layer."""

    fixed_layer: int
    context_layer: int
    components: int
    rate: float
    epochs: int
    validation_loss: float

    mean_loss: float
    """Loss of one vector for all."""

    letter_share: float | None
    """Mean share of a predicted vector's squared norm that lies in the letter direction."""

    no_letter: str
    """Why there is no letter direction; empty where there is."""

    layers: NetworkLayers


@dataclass(frozen=True, kw_only=True)
class EncoderScore:
    """How well an encoder of prompts serves."""

    settings: dict[str, Any]
    n_dimensions: int
    n_truncated: int

    silhouette: float | None
    """Of the behaviors, cosine distance, base test samples; None for a single behavior."""

    accuracy: float
    """Share of test samples whose best layer is predicted."""

    value: float
    fixed: float
    """Steerability at the predicted layers, and at the fixed layer."""


@dataclass(frozen=True, kw_only=True)
class Plane:
    """How embeddings.png came to two dimensions."""

    method: str
    explained: tuple[float, float] | None
    """Of PCA: the share of the variance on each axis."""


@dataclass(frozen=True, kw_only=True)
class PredictorScores:
    """All numbers of the stage `predictors`."""

    behaviors: tuple[str, ...]
    layers: tuple[int, ...]
    top: tuple[int, ...]
    seeds: int

    encoder: str
    """The encoder whose predictors are scored in `sets`."""

    settings: W2SSettings
    variants: tuple[str, ...]

    letters: tuple[str, ...]
    """Letters with enough test samples."""

    sets: dict[str, DirectionSetScores]
    """By name of the direction set: `caa`, `l2s`, …"""

    networks: dict[str, NetworkScore]
    """By behavior; empty without L2S."""

    encoders: dict[str, EncoderScore]
    plane: Plane | None
