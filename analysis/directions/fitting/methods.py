"""Fit a direction in every layer by one or several methods, on one factorisation a layer."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float32, Float64, Shaped

from actcache.analysis.directions.fitting.choice import LayerFit, LayerLabels
from actcache.analysis.directions.fitting.labels import LabelledRows, labelled_rows
from actcache.analysis.directions.fitting.linear import (
    fit_lda,
    fit_logistic,
    fit_mean,
    fit_pca,
    fit_ridge,
)
from actcache.analysis.directions.fitting.row_space import RowSpace, row_space
from actcache.analysis.directions.fitting.scores import auc_intervals
from actcache.analysis.stats.bootstrap import Interval
from actcache.errors import MismatchError, NotFiniteError

BATCH_BYTES = 2**28
"""Row spaces in memory at a time: what a method that batches layers can put together."""

Fit = Callable[[Sequence[RowSpace], Sequence[LayerLabels]], list[LayerFit]]
"""What a method is: row spaces and labels of any layers (of any concepts) into their fits."""


def _one_by_one(fit: Callable[[RowSpace, LayerLabels], LayerFit]) -> Fit:
    return lambda spaces, labels: [fit(s, y) for s, y in zip(spaces, labels, strict=True)]


def _rfm(spaces: Sequence[RowSpace], labels: Sequence[LayerLabels]) -> list[LayerFit]:
    from actcache.analysis.directions.fitting.rfm import fit_rfm  # torch, only where it is needed

    return fit_rfm(spaces, labels)


METHODS: Mapping[str, Fit] = {
    "mean": _one_by_one(fit_mean),
    "pca": _one_by_one(fit_pca),
    "ridge": _one_by_one(fit_ridge),
    "logistic": _one_by_one(fit_logistic),
    "lda": _one_by_one(fit_lda),
    "rfm": _rfm,
}
"""Every method by its name in `conventions.FIT_METHODS`."""

WITHOUT_SETTINGS: frozenset[str] = frozenset({"mean", "pca"})
"""Methods that need no validation rows."""


@dataclass(frozen=True, kw_only=True)
class FittedDirections:
    """The directions of one method, one in each layer."""

    method: str
    """Its name in `METHODS`."""

    values: Float32[np.ndarray, "layer d_model"]
    """Unit directions; rows with larger labels project higher on them."""

    settings: Sequence[Mapping[str, float]]
    """What the validation rows chose in each layer."""

    validation: Float64[np.ndarray, " layer"]
    """Correlation of the validation rows' projections with their labels; NaN without such rows."""

    auc: Sequence[Interval]
    """Share of pairs of a positive and a negative test row in which the positive projects higher.

    The interval resamples test rows within each class. Empty without test rows. A high AUC alone is
    no evidence of a concept: where its rows vary most, any direction tells them apart.
    """


def fit_directions(
    residuals: Shaped[np.ndarray, "..."] | Iterable[Shaped[np.ndarray, "_n _d_model"]],
    y: Shaped[np.ndarray, "..."],
    *,
    train: Shaped[np.ndarray, "..."],
    validation: Shaped[np.ndarray, "..."] | None = None,
    test: Shaped[np.ndarray, "..."] | None = None,
    methods: Sequence[str] = ("mean",),
    positive: Bool[np.ndarray, " _n"] | None = None,
    pairs: Shaped[np.ndarray, " _n"] | None = None,
    rng: np.random.Generator | None = None,
    draws: int = 1000,
) -> dict[str, FittedDirections]:
    """Fit a unit direction in every layer by each of the methods; larger labels project higher.

    Train rows fit, validation rows choose among a method's settings (by the correlation of their
    projections with their labels), test rows judge. All methods share one float64 factorisation of
    each layer's train rows.

    | method | direction u | settings | source |
    |---|---|---|---|
    | mean | Σᵢ (yᵢ - ȳ) xᵢ; with labels 0 and 1 the difference of means | | Rimsky et al. 2024 |
    | pca | first component of pair differences, not centred | | Zou et al. 2023 |
    | ridge | (XᵀX + λI)⁻¹ Xᵀy, centred unit rows | λ 1e-4 … 10 | Hoerl & Kennard 1970 |
    | logistic | min ½|u|² + C Σᵢ log loss(yᵢ, u·xᵢ + b), centred unit rows | C 0.1 … 1000 | |
    | lda | ((1 - s) S + s tr(S)/d I)⁻¹ (μ⁺ - μ⁻) | s 0.001 … 0.9 | Friedman 1989 |
    | rfm | top eigenvector of the gradients' covariance | L, scaling, iterate | see `fit_rfm` |

    Args:
        residuals: `[n, layer, d_model]`, or one `[n, d_model]` for each layer in turn: a generator
            reads one layer at a time, each from a token of its own if need be.
        y: labels 0 and 1, or how much each row shows the concept; `[n]`, or `[n, layer]` with
            labels of its own for each layer.
        train: a mask `[n]` of the rows that fit; 8 or more of each class.
        validation: rows that choose; needed by all methods but mean and pca.
        test: rows that judge.
        methods: which, in the order of the result.
        positive: rows that hold the concept. By default those with a label above the smallest.
        pairs: a number for each row; the positive and the negative train row of one number make a
            pair of `pca`. By default the first positive row with the first negative one, and so on.
        rng: draws the intervals.
        draws: bootstrap draws of an interval.

    Raises:
        MismatchError: labels that do not vary, too few rows of a class, splits that overlap or do
            not fit, or a method that is unknown or has no validation rows.
        NotFiniteError: a label or a residual is infinite or not a number.

    Example:
        Contrast pairs are rows too, the positive completions before the negative ones::

            sides = [store.residuals(p) for p in ("positive", "negative")]
            layers = (np.concatenate([s.layer(k) for s in sides]) for k in store.layers)
            fitted = fit_directions(
                layers,
                np.repeat([1, 0], store.n),
                pairs=np.tile(np.arange(store.n), 2),
                train=np.tile(store["split"] == "train", 2),
            )
            fitted["mean"].values  # [layer, d_model]
    """
    rows = labelled_rows(
        y, train=train, validation=validation, test=test, positive=positive, pairs=pairs
    )
    _check_methods(methods, rows)
    if isinstance(residuals, np.ndarray):
        residuals = _layers_of(residuals)
        for number, values in enumerate(residuals):  # all of them, before the first is fitted
            _check_layer(values, rows, layer=number)
    fits: dict[str, list[LayerFit]] = {name: [] for name in methods}
    units: dict[str, list[Float32[np.ndarray, " d_model"]]] = {name: [] for name in methods}
    projections: dict[str, list[Float32[np.ndarray, " n_test"]]] = {n: [] for n in methods}
    for batch in _batches(residuals, rows):
        spaces, labels = [layer.space for layer in batch], [layer.labels for layer in batch]
        for name in methods:
            fits[name] += (fitted := METHODS[name](spaces, labels))
            for layer, fit in zip(batch, fitted, strict=True):
                direction = _oriented(layer.space, layer.labels, fit)
                units[name].append(direction)
                projections[name].append(layer.test @ direction)
    rng = np.random.default_rng(0) if rng is None else rng
    return {
        name: FittedDirections(
            method=name,
            values=np.stack(units[name]),
            settings=[fit.setting for fit in fits[name]],
            validation=np.array([fit.validation for fit in fits[name]]),
            auc=auc_intervals(
                np.stack(projections[name], axis=1), rows.positive[rows.test], rng, draws=draws
            )
            if len(rows.test)
            else (),
        )
        for name in methods
    }


@dataclass(frozen=True, kw_only=True)
class _Layer:
    space: RowSpace
    labels: LayerLabels
    test: Float32[np.ndarray, "n_test d_model"]


def _batches(
    layers: Iterable[Shaped[np.ndarray, "n d_model"]], rows: LabelledRows
) -> Iterator[list[_Layer]]:
    """Factorise layer after layer; as many at a time as `BATCH_BYTES` hold."""
    batch: list[_Layer] = []
    size, count = 0, 0
    for count, values in enumerate(layers, start=1):
        number = count - 1
        _check_layer(values, rows, layer=number)
        train = values[rows.train]
        if (train == train[0]).all():
            raise MismatchError(
                f"all train rows are equal at layer {number}, expected rows that differ. Leave "
                "the layer out, or read another position."
            )
        space = row_space(train, values[rows.validation])
        test = np.asarray(values[rows.test], np.float32)
        batch.append(_Layer(space=space, labels=rows.of_layer(number), test=test))
        size += (1 if space.basis is None else 2) * space.train.shape[0] * space.d_model * 8
        if size >= BATCH_BYTES:
            yield batch
            batch, size = [], 0
    if rows.label_layers not in (1, count) or not count:
        raise MismatchError(
            f"there are labels for {rows.label_layers} layers and residuals of {count}, expected "
            "as many, or labels [n] for all. Pass labels and residuals of the same layers."
        )
    if batch:
        yield batch


def _oriented(
    space: RowSpace, labels: LayerLabels, fit: LayerFit
) -> Float32[np.ndarray, " d_model"]:
    """The unit direction, turned so that larger train labels project higher."""
    rise = (labels.train - labels.train.mean()) @ (space.train @ fit.weights)
    return space.direction(-fit.weights if rise < 0 else fit.weights)


def _check_methods(methods: Sequence[str], rows: LabelledRows) -> None:
    unknown = [name for name in methods if name not in METHODS]
    if unknown or not methods or len(set(methods)) != len(methods):
        raise MismatchError(
            f"methods are {', '.join(methods) or 'none'}, expected one or more of "
            f"{', '.join(METHODS)}, each once. Pass some of them."
        )
    choosing = [name for name in methods if name not in WITHOUT_SETTINGS]
    if choosing and not len(rows.validation):
        raise MismatchError(
            f"{', '.join(choosing)} choose their settings on validation rows, and there is none. "
            "Pass `validation`, for example the last fifth of the train rows taken out of `train`."
        )


def _layers_of(residuals: Shaped[np.ndarray, "..."]) -> Shaped[np.ndarray, "layer n d_model"]:
    if residuals.ndim != 3:
        raise MismatchError(
            f"residuals have shape {list(residuals.shape)}, expected [n, layer, d_model]. Pass "
            "[residuals] for a single layer."
        )
    return residuals.swapaxes(0, 1)


def _check_layer(
    values: Shaped[np.ndarray, "n d_model"], rows: LabelledRows, *, layer: int
) -> None:
    """Refuse residuals of other rows, and values that are not finite in rows that are used."""
    n = len(rows.labels)
    if values.ndim != 2 or len(values) != n:
        raise MismatchError(
            f"residuals of layer {layer} have shape {list(values.shape)}, expected [{n}, d_model] "
            f"for labels of {n} rows. Pass residuals and labels of the same rows."
        )
    for used in (rows.train, rows.validation, rows.test):
        finite = np.isfinite(values[used]).all(1)
        if not finite.all():
            row = used[np.argmin(finite)]
            raise NotFiniteError(
                f"the residual of row {row} at layer {layer} is not finite. Find it with: "
                "actcache verify"
            )
