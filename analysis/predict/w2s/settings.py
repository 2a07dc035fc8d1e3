"""Settings of W2S predictors: the grid that is searched, folds and seeds, checked when made."""

from dataclasses import dataclass
from math import prod

from actcache.analysis.config import AnalyzeConfig
from actcache.errors import MismatchError
from actcache.settings import setting


@dataclass(frozen=True, kw_only=True)
class W2SSettings:
    """How predictors are trained and chosen; the grid is every combination of its four axes.

    The paper's own grid is not preserved. The defaults are what did well on planted problems.
    """

    rates: tuple[float, ...] = setting((1e-3, 3e-3), help="learning rates")
    widths: tuple[int, ...] = setting((32, 64), help="units of a hidden layer")
    depths: tuple[int, ...] = setting((1, 2), help="hidden layers")
    decays: tuple[float, ...] = setting(
        (0.01, 1.0),
        help="weight decay of AdamW. Times rate and steps, it is the share that a weight loses: "
        "below 0.1 it makes no difference in some hundred steps",
    )
    epochs: tuple[int, ...] = setting(
        (5, 10, 20, 40, 80), help="how long to train, rising; one run gives all of them"
    )
    batch: int = setting(128, help="rows in a step")
    folds: int = setting(
        5, help="folds of the cross-validation inside train; fewer where there are fewer prompts"
    )
    top: tuple[int, ...] = setting(
        AnalyzeConfig.top, help="the K of frequency smoothing; one predictor each"
    )
    seeds: int = setting(
        AnalyzeConfig.seeds,
        help="networks that the chosen setting is trained with on all train samples",
    )
    components: int | None = setting(
        128, help="principal components of the embeddings that are kept; None keeps all"
    )
    seed: int = setting(AnalyzeConfig.seed, help="seed of folds, batches and initial weights")

    def __post_init__(self) -> None:
        for name in ("rates", "widths", "depths", "decays", "epochs", "top"):
            values, default = getattr(self, name), getattr(W2SSettings, name)
            least = 0.0 if name in ("rates", "decays") else 1
            if not values or len(set(values)) < len(values) or min(values) < least:
                raise MismatchError(
                    f"{name} are {list(values)}, expected one or more of at least {least:g}, each "
                    f"once. Pass for example {', '.join(map(str, default))}."
                )
        if list(self.epochs) != sorted(self.epochs):
            raise MismatchError(
                f"epochs are {list(self.epochs)}, expected rising ones. Pass them in order."
            )
        for name, least in (("batch", 1), ("folds", 2), ("seeds", 1), ("components", 1)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise MismatchError(
                    f"{name} is {value}, expected at least {least}. "
                    f"Pass for example {getattr(W2SSettings, name)}."
                )

    @property
    def n_networks(self) -> int:
        """Networks that training takes: each grid point on each fold, then the seeds, for each K.

        Fewer where there are fewer prompts than folds.
        """
        axes = (self.rates, self.widths, self.depths, self.decays)
        return len(self.top) * (prod(map(len, axes)) * self.folds + self.seeds)


@dataclass(frozen=True, kw_only=True)
class ChosenSetting:
    """One point of the grid."""

    rate: float
    width: int
    depth: int
    decay: float
    epochs: int
