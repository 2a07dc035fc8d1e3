"""Settings of L2S networks, checked when they are made."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from actcache.conventions import LOSSES
from actcache.errors import ActcacheError

"""`paper`: squared error. `code`: mean squared and mean absolute error minus a share of the cosine,
as the paper's public code has it."""


@dataclass(frozen=True, kw_only=True)
class L2SSettings:
    """How the networks are made and trained."""

    loss: str = "paper"
    """Of `LOSSES`; `code` is several times slower."""

    hidden: int = 100
    """Hidden units."""

    rates: Sequence[float] = (1e-3, 4e-3, 1.6e-2)
    """Learning rates to try."""

    components: Sequence[int] = (32, 128)
    """How many principal components of contexts and targets a network reads and predicts: tried
    like rates. A number above that of the train samples leaves nothing out; at 400 samples of 4096
    that takes about three times as long as these two."""

    epochs: int = 100
    """Passes over the train samples."""

    batch: int = 64
    """Samples a step."""

    check_every: int = 10
    """Epochs between evaluations on the validation samples; the best evaluated state is kept."""

    seed: int = 0
    """Of initial weights and of the order of the samples."""

    def __post_init__(self) -> None:
        if self.loss not in LOSSES:
            raise ActcacheError(f"loss is '{self.loss}', expected paper or code. Pass one of them.")
        for name in ("hidden", "epochs", "batch", "check_every"):
            if getattr(self, name) < 1:
                raise ActcacheError(
                    f"{name} is {getattr(self, name)}, expected 1 or more. Pass a larger one."
                )
        for name in ("rates", "components"):
            values = getattr(self, name)
            if not values or min(values) <= 0 or len(set(values)) != len(values):
                raise ActcacheError(
                    f"{name} are {list(values)}, expected one or more, each once and above 0. "
                    "Pass others."
                )
        if not 0 <= self.seed < 2**32:
            raise ActcacheError(f"seed is {self.seed}, expected 0 to {2**32 - 1}. Pass another.")


def default_context_layers(n_layers: int) -> list[int]:
    """Choose about 8 layers, evenly spaced, the first and the last among them.

    The paper's own list is not public. All layers of a deep model would take four times as long.
    """
    return [int(layer) for layer in np.unique(np.linspace(0, n_layers - 1, 8).round())]
