"""Settings of L2S networks, checked when they are made."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import no_type_check

import numpy as np

from actcache.analysis.config import AnalyzeConfig
from actcache.conventions import Loss
from actcache.errors import ActcacheError
from actcache.settings import check_words, setting


@no_type_check  # users' words: `check_words` refuses them, also under a type checker
@dataclass(frozen=True, kw_only=True)
class L2SSettings:
    """How the networks are made and trained."""

    loss: Loss = setting(
        AnalyzeConfig.loss,
        help="paper: squared error. code: mean squared and mean absolute error minus a share of "
        "the cosine, as the paper's public code has it; several times slower",
    )
    hidden: int = setting(100, help="hidden units")
    rates: Sequence[float] = setting((1e-3, 4e-3, 1.6e-2), help="learning rates to try")
    components: Sequence[int] = setting(
        (32, 128),
        help="how many principal components of contexts and targets a network reads and predicts: "
        "tried like rates. A number above that of the train samples leaves nothing out; at 400 "
        "samples of 4096 that takes about three times as long as these two",
    )
    epochs: int = setting(100, help="passes over the train samples")
    batch: int = setting(64, help="samples a step")
    check_every: int = setting(
        10, help="epochs between evaluations on validation samples; the best state is kept"
    )
    seed: int = setting(
        AnalyzeConfig.seed, help="seed of initial weights and of the order of the samples"
    )

    def __post_init__(self) -> None:
        check_words(self)
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
