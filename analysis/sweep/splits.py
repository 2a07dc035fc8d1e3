"""Random splits of the base prompts: how much the fixed layer's numbers depend on the split.

Each split has train samples of its own, hence directions of its own, which one sweep steers with
beside the others (`sets_of_analysis`). Only what it reads is swept: its train samples, which choose
its fixed layer, and its test samples, at all layers, since the layer is known after the sweep.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool

from actcache.analysis.config import AnalyzeConfig
from actcache.analysis.names import METHOD, split_set
from actcache.analysis.stats.slopes import slopes
from actcache.analysis.sweep.open_sweep import Sweep
from actcache.analysis.sweep.strategies import SplitScore, fixed_layer
from actcache.conventions import SPLITS
from actcache.data.samples import Sample
from actcache.data.splits import assign_splits
from actcache.errors import MismatchError
from actcache.store.store import Store


@dataclass(frozen=True, kw_only=True)
class Split:
    """Base samples to choose the fixed layer on, and others to read it on."""

    train: Bool[np.ndarray, " n"]
    test: Bool[np.ndarray, " n"]

    @property
    def rows(self) -> Bool[np.ndarray, " n"]:
        """All that the split reads."""
        return np.asarray(self.train | self.test)


def splits_of(store: Store, config: AnalyzeConfig) -> list[Split]:
    """List the store's own split, and random ones of the same shares until there are `splits`.

    Random splits are drawn as those of a build: equal prompts together, letters balanced.

    Raises:
        MismatchError: a behavior has too few distinct prompts to be split anew.
    """
    base, split = store["variant"] == "base", store["split"]
    splits = [Split(train=base & (split == "train"), test=base & (split == "test"))]
    for number in range(1, config.splits):
        drawn = np.full(store.n, "", dtype=object)
        for behavior in np.unique(store["behavior"]).tolist():
            rows = np.flatnonzero(base & (store["behavior"] == behavior))
            drawn[rows] = _draw(store, rows, seed=config.seed + number)
            absent = {"train", "test"} - set(drawn[rows].tolist())
            if absent and len(rows):
                raise MismatchError(
                    f"a random split of behavior '{behavior}' has no {' and no '.join(absent)} "
                    "rows, expected some: it has too few distinct prompts. Build from more rows, "
                    "or pass --splits 1."
                )
        splits.append(Split(train=drawn == "train", test=drawn == "test"))
    return splits


def _draw(store: Store, rows: np.ndarray, *, seed: int) -> list[str]:
    """Split some rows of one behavior anew, in the shares that they have."""
    shares = [float((store["split"][rows] == side).mean()) for side in SPLITS]
    samples = [
        Sample(
            id=str(store["id"][row]),
            behavior=str(store["behavior"][row]),
            prompt=str(store["prompt"][row]),
            positive=None,
            negative=None,
            label=None,
            letter=str(store["letter"][row]),
        )
        for row in rows
    ]
    return assign_splits(samples, fractions=(shares[0], shares[1], shares[2]), seed=seed)


def score_splits(
    sweep: Sweep,
    splits: Sequence[Split],
    *,
    own_vectors: str | None = None,
) -> dict[str, tuple[SplitScore, ...]]:
    """Choose and read the fixed layer of every behavior on each split; by behavior.

    The directions are those of each split; or, of a set whose vectors no split changes, that one
    (`own_vectors`).
    """
    behaviors = sweep.store["behavior"]
    scores: dict[str, list[SplitScore]] = {}
    for number, split in enumerate(splits):
        name = own_vectors or (split_set(number) if number else METHOD)
        propensity = sweep.propensity_of(name)
        for behavior in np.unique(behaviors[split.test]).tolist():
            rows = behaviors == behavior
            train, test = (
                slopes(propensity[side & rows], sweep.multipliers)
                for side in (split.train, split.test)
            )
            layer = fixed_layer(train, np.ones(len(train), bool))
            scores.setdefault(behavior, []).append(
                SplitScore(
                    fixed_layer=int(sweep.layers[layer]),
                    slope=float(test[:, layer].mean()),
                    share=float((test[:, layer] > 0).mean()),
                )
            )
    return {behavior: tuple(of_splits) for behavior, of_splits in scores.items()}
