"""The labels and rows of a fit, checked before anything slow: which rows fit, choose and judge."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float64, Int64, Shaped

from actcache.analysis.directions.fitting.choice import LayerLabels
from actcache.errors import MismatchError, NotFiniteError

LEAST_ROWS = 8
"""Train rows of each class below which no direction is fitted."""


@dataclass(frozen=True, kw_only=True)
class LabelledRows:
    """Row numbers of the three splits, and what each row is labelled."""

    train: Int64[np.ndarray, " n_train"]
    validation: Int64[np.ndarray, " n_validation"]
    test: Int64[np.ndarray, " n_test"]
    """Row numbers; the last two may be empty."""

    labels: Float64[np.ndarray, "n label_layer"]
    """One column for all layers, or one for each."""

    positive: Bool[np.ndarray, " n"]
    """Which rows hold the concept: what a test row's projection is judged by."""

    pairs: Int64[np.ndarray, "pair 2"]
    """Places among the train rows, the positive one first."""

    @property
    def label_layers(self) -> int:
        """Layers that have labels of their own; 1 where all share theirs."""
        return int(self.labels.shape[1])

    def of_layer(self, layer: int) -> LayerLabels:
        """The labels that a method needs in one layer; of layers beyond, which are refused, any."""
        column = self.labels[:, min(layer, self.label_layers - 1)]
        return LayerLabels(
            train=column[self.train], validation=column[self.validation], pairs=self.pairs
        )


def labelled_rows(
    y: Shaped[np.ndarray, "..."],
    *,
    train: Shaped[np.ndarray, "..."],
    validation: Shaped[np.ndarray, "..."] | None,
    test: Shaped[np.ndarray, "..."] | None,
    positive: Bool[np.ndarray, " _n"] | None,
    pairs: Shaped[np.ndarray, " _n"] | None,
) -> LabelledRows:
    """Check labels and splits; see `fit_directions` for what they are."""
    labels = np.asarray(y, np.float64)
    labels = labels[:, None] if labels.ndim == 1 else labels
    n = len(labels)
    nothing = np.zeros(n, bool)
    splits = {
        "train": train,
        "validation": nothing if validation is None else validation,
        "test": nothing if test is None else test,
    }
    _check_splits(splits, n, labels.ndim)
    used = splits["train"] | splits["validation"] | splits["test"]
    _check_finite(labels, used)
    if positive is None:
        positive = (labels > labels[used].min(0)).any(1)
    for name in ("train", "validation"):
        if splits[name].any():
            _check_varies(labels[splits[name]], name)
    _check_classes(positive, splits)
    rows = {name: np.flatnonzero(mask) for name, mask in splits.items()}
    return LabelledRows(
        **rows,
        labels=labels,
        positive=positive,
        pairs=_pairs(positive[rows["train"]], None if pairs is None else pairs[rows["train"]]),
    )


def _check_splits(splits: dict[str, np.ndarray], n: int, dimensions: int) -> None:
    for name, mask in splits.items():
        if dimensions != 2 or mask.shape != (n,) or mask.dtype != bool:
            raise MismatchError(
                f"there are labels of {n} rows in {dimensions - 1} dimensions, and {name} is a "
                f"{mask.dtype} array of shape {list(mask.shape)}, expected labels [n] or "
                f"[n, layer] and a bool mask [{n}]. Pass for example store['split'] == '{name}'."
            )
    names = list(splits)
    for i, name in enumerate(names):
        for other in names[i + 1 :]:
            shared = int((splits[name] & splits[other]).sum())
            if shared:
                raise MismatchError(
                    f"{shared} rows are in {name} and in {other}, expected none in two of them. "
                    "Pass splits that do not overlap."
                )


def _check_finite(labels: Float64[np.ndarray, "n label_layer"], used: np.ndarray) -> None:
    wrong = np.argwhere(~np.isfinite(labels) & used[:, None])
    if len(wrong):
        row, layer = wrong[0]
        raise NotFiniteError(
            f"the label of row {row} at layer {layer} is {labels[row, layer]}, expected a finite "
            "number. Leave the row out of the splits, or label it."
        )
    dark = np.flatnonzero((labels[used] == 0).all(0))
    if len(dark):
        raise MismatchError(
            f"all labels are 0{_in_layers(dark, labels)}, expected some above. With soft labels: "
            "no row's token attends to the span there (a sliding window may end before it); leave "
            "these layers out, or use hard labels for them."
        )


def _check_varies(labels: Float64[np.ndarray, "n label_layer"], name: str) -> None:
    flat = np.flatnonzero((labels == labels[0]).all(0))
    if len(flat):
        raise MismatchError(
            f"all {len(labels)} {name} rows have the label {labels[0, flat[0]]:g}"
            f"{_in_layers(flat, labels)}, expected two or more values. Split the rows so that "
            f"{name} has some of each class."
        )


def _check_classes(
    positive: Bool[np.ndarray, " n"], splits: dict[str, Bool[np.ndarray, " n"]]
) -> None:
    for name, least in (("train", LEAST_ROWS), ("test", 1)):
        members = positive[splits[name]]
        counts = int(members.sum()), int((~members).sum())
        if (name == "train" or len(members)) and min(counts) < least:
            raise MismatchError(
                f"{name} has {counts[0]} positive and {counts[1]} negative rows, expected {least} "
                "or more of both. Add rows or split them otherwise; with labels that are no "
                "classes, pass `positive`, a mask of the rows that hold the concept."
            )


def _in_layers(layers: np.ndarray, labels: Float64[np.ndarray, "n label_layer"]) -> str:
    if labels.shape[1] == 1:
        return ""
    return f" at layer{'s' if len(layers) > 1 else ''} {', '.join(map(str, layers))}"


def _pairs(
    positive: Bool[np.ndarray, " n"], numbers: Shaped[np.ndarray, " n"] | None
) -> Int64[np.ndarray, "pair 2"]:
    """Match each positive train row with its negative; without numbers in the order of rows."""
    upper, lower = np.flatnonzero(positive), np.flatnonzero(~positive)
    if numbers is None:
        count = min(len(upper), len(lower))
        return np.stack([upper[:count], lower[:count]], axis=1)
    for side, rows in (("positive", upper), ("negative", lower)):
        values, counts = np.unique(numbers[rows], return_counts=True)
        if (counts > 1).any():
            raise MismatchError(
                f"pair {values[counts > 1][0]} has {counts.max()} {side} train rows, expected one "
                "positive and one negative row a pair. Give each pair a number of its own."
            )
    _, i, j = np.intersect1d(numbers[upper], numbers[lower], return_indices=True)
    if not len(i):
        raise MismatchError(
            "no positive train row has the pair number of a negative one, expected one or more "
            "pairs. Give both rows of a pair the same number, or leave `pairs` out."
        )
    return np.stack([upper[i], lower[j]], axis=1)
