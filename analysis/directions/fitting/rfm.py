"""Recursive Feature Machine, as attention-guided steering fits it, without a d × d matrix.

Radhakrishnan et al. 2024 (Science 383), Davarmanesh et al. 2026 (arXiv 2602.00333). The published
loop starts at M = I and repeats: kernel ridge regression with K = exp(-|xᵢ - xⱼ|_M / L); gradients
of what it learned, at each train row; M = their uncentred covariance about their mean, over its
largest entry. Each M is a candidate, by its top eigenvector.

All of this happens in the row space. With M = FᵀF the gradients are sums of M (xᵢ - xⱼ), that is
G = B X M = B Y F with Y = X Fᵀ, and the next M is GᵀG / s: its factor G / √s has n rows and r
columns again. The model's own basis counts in one place, the largest entry s, which sets how wide
the kernel is in the next iteration.
"""

import itertools
import logging
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from jaxtyping import Float64
from torch import Tensor

from actcache.analysis.directions.fitting.choice import LayerFit, LayerLabels, pearson
from actcache.analysis.directions.fitting.row_space import CentredRows, RowSpace
from actcache.analysis.directions.fitting.spectrum import (
    FEW,
    TINY,
    Krylov,
    decompose,
    fewest_rows,
    lanczos,
    largest_diagonal,
    shortened,
    unit,
)
from actcache.errors import ActcacheError

log = logging.getLogger("actcache")

SETTINGS = tuple(itertools.product((False, True), (1.0, 10.0, 100.0)))
"""Whether rows are scaled to norm 1 once more after centring, and L, the width of the kernel."""

ITERATES = 9
"""Of ten iterations, M₁ … M₉. The published code judges M₀ = I too, whose eigenvector is any."""

RIDGE = 1e-3

FitBatch = Callable[[Sequence[RowSpace], Sequence[LayerLabels]], list[LayerFit]]

SHORTENED_FROM = 2
"""Updates of M after which it is worth a try whether its rank has fallen."""

EQUAL = 1e-14
"""Squared distance, as a share of both squared lengths, below which rows are equal but for
rounding; the gradient of the kernel is not defined there, and taken as 0."""


def fit_rfm(
    spaces: Sequence[RowSpace],
    labels: Sequence[LayerLabels],
    *,
    at_once: int | None = None,
    fit_batch: FitBatch | None = None,
) -> list[LayerFit]:
    """Fit six settings in each layer; validation rows choose setting and iterate.

    Rows are unit residuals minus their train mean. Labels are used as they are: a factor changes
    nothing, an offset does. The score is |correlation| on validation rows, as published.

    Args:
        spaces: row spaces of layers, of one concept or several.
        labels: of each of them.
        at_once: layers with equally many rows that run together. By default all on a GPU, halved
            when its memory does not suffice, and one on a CPU, where together is no faster.
        fit_batch: what fits the layers of a batch, which is replaced in tests.

    Raises:
        ActcacheError: the device has no memory for one layer.
    """
    fit_batch = fit_batch or _fit_batch
    alike: dict[tuple[int, ...], list[int]] = {}
    for place, space in enumerate(spaces):
        alike.setdefault((*space.train.shape, space.d_model), []).append(place)
    fits: dict[int, LayerFit] = {}
    for places in alike.values():
        size = at_once or (len(places) if torch.cuda.is_available() else 1)
        while places:
            batch = places[:size]
            fitted = _in_memory(fit_batch, [spaces[i] for i in batch], [labels[i] for i in batch])
            if fitted is None:
                size = _halved(len(batch))
                continue
            fits.update(zip(batch, fitted, strict=True))
            places = places[size:]
    return [fits[place] for place in range(len(spaces))]


def _fit_batch(spaces: Sequence[RowSpace], labels: Sequence[LayerLabels]) -> list[LayerFit]:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    scaled = []
    for space in spaces:
        rows = space.centred(unit_rows=True)
        scaled.append([rows.scaled_to_unit() if again else rows for again, _ in SETTINGS])
    x = _tensor([[rows.train for rows in by_setting] for by_setting in scaled], device)
    y = _tensor([layer.train for layer in labels], device)
    widths = _tensor([width for _, width in SETTINGS], device)
    bases = [None if s.basis is None else _tensor(s.basis, device) for s in spaces]

    def iterates(settings: slice) -> Tensor:
        tops = rfm_iterates(x[:, settings], y, bases, widths[settings], count=ITERATES)
        return torch.stack(list(tops), dim=2)

    if device.type == "cuda":
        tops = iterates(slice(None))
    else:  # the matrices of one setting stay in the cache, and its M loses rank by itself
        tops = torch.cat([iterates(slice(i, i + 1)) for i in range(len(SETTINGS))], dim=1)
    return [
        _chosen(top, by_setting, layer.validation)
        for top, by_setting, layer in zip(tops.cpu().numpy(), scaled, labels, strict=True)
    ]


def _chosen(
    tops: Float64[np.ndarray, "setting iterate r"],
    rows: Sequence[CentredRows],
    labels: Float64[np.ndarray, " m"],
) -> LayerFit:
    """The setting and iterate whose projections correlate best with validation labels."""
    scores = np.array(
        [
            np.abs(pearson(of_setting.validation @ vectors.T, labels))
            for of_setting, vectors in zip(rows, tops, strict=True)
        ]
    )
    best = int(np.argmax(np.nan_to_num(scores, nan=-1)))
    setting, iterate = divmod(best, ITERATES)
    again, width = SETTINGS[setting]
    return LayerFit(
        weights=tops[setting, iterate],
        setting={"bandwidth": width, "unit_again": again, "iterate": iterate + 1},
        validation=float(scores[setting, iterate]),
    )


def rfm_iterates(
    rows: Float64[Tensor, "layer setting n r"],
    labels: Float64[Tensor, "layer n"],
    bases: Sequence[Float64[Tensor, "d r"] | None],
    widths: Float64[Tensor, " setting"],
    *,
    count: int,
) -> Iterator[Float64[Tensor, "layer setting r"]]:
    """Yield the top eigenvectors of M₁, M₂, …, of either sign, in the rows' coordinates.

    Args:
        rows: centred rows of each layer, scaled as a setting wants them.
        labels: of each layer's rows.
        bases: of each layer the model's basis, in which the largest entry of M is looked for; None
            where the rows' coordinates are the model's.
        widths: L of each setting's kernel.
        count: how many iterates.
    """
    layers, settings, n, r = rows.shape
    x = rows.reshape(-1, n, r)
    y = labels.repeat_interleave(settings, 0)
    width = widths.repeat(layers)[:, None, None]
    # A start for the eigenvectors that is near them, and not at right angles to any of them.
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(r, generator=generator, dtype=rows.dtype).to(rows.device) / r**0.5
    top = ((y - y.mean(1, keepdim=True))[:, None, :] @ x)[:, 0]
    factor: Tensor | None = None
    for iterate in range(count):
        # |xᵢ - xⱼ|_M = |yᵢ - yⱼ| for the rows Y = X Fᵀ.
        embedded = x if factor is None else x @ factor.mT
        gradients = fewest_rows(_gradient_weights(embedded, y, width) @ embedded)
        factor = gradients if factor is None else gradients @ factor
        if factor.shape[1] > FEW and iterate >= SHORTENED_FROM:
            factor = shortened(factor)
        if factor.shape[1] > FEW:
            krylov = lanczos(factor, unit(top) + 0.1 * noise)
            top = krylov.top
        else:
            krylov = None
            top, factor = decompose(factor)
        yield top.reshape(layers, settings, r)
        if iterate + 1 < count:
            scale = _largest_entries(factor, bases, krylov)
            factor = factor / scale.sqrt()[:, None, None]


def _largest_entries(
    factor: Float64[Tensor, "p n r"],
    bases: Sequence[Float64[Tensor, "d r"] | None],
    krylov: Krylov | None,
) -> Float64[Tensor, " p"]:
    """The largest entry of each M = FᵀF in the model's basis; the problems of a layer share one."""
    settings = len(factor) // len(bases)
    largest = []
    for place, basis in enumerate(bases):
        layer = slice(place * settings, (place + 1) * settings)
        largest.append(
            factor[layer].square().sum(1).amax(1)
            if basis is None
            else largest_diagonal(factor[layer], basis, krylov and krylov.of(layer))
        )
    return torch.cat(largest).clamp(min=TINY)


def _gradient_weights(
    embedded: Float64[Tensor, "p n e"], y: Float64[Tensor, "p n"], width: Float64[Tensor, "p 1 1"]
) -> Float64[Tensor, "p n n"]:
    """B with which the centred gradients are G = B X M.

    Gⱼ = Σᵢ aᵢ Kᵢⱼ (M xᵢ - M xⱼ) / |xᵢ - xⱼ|_M with a = (K + 1e-3 I)⁻¹ y; the factor -1/L of the
    kernel's derivative goes when M is divided by its largest entry.
    """
    gram = embedded @ embedded.mT
    squared = gram.diagonal(dim1=1, dim2=2)
    lengths = squared[:, :, None] + squared[:, None, :]
    distance = lengths.sub(gram, alpha=2)
    equal = distance <= lengths.mul_(EQUAL)
    distance.masked_fill_(equal, 0).sqrt_()
    kernel = distance.div(-width).exp_()
    weights = (kernel / distance).masked_fill_(equal, 0)
    kernel.diagonal(dim1=1, dim2=2).add_(RIDGE)
    a = torch.cholesky_solve(y[:, :, None], torch.linalg.cholesky(kernel))
    weights.mul_(a.mT)
    weights.diagonal(dim1=1, dim2=2).sub_(weights.sum(2))
    return weights.sub_(weights.mean(1, keepdim=True))


def _tensor(values: object, device: torch.device) -> Tensor:
    tensor: Tensor = torch.from_numpy(np.asarray(values, np.float64))
    return tensor.to(device)


def _in_memory(
    fit_batch: FitBatch, spaces: Sequence[RowSpace], labels: Sequence[LayerLabels]
) -> list[LayerFit] | None:
    """Fit a batch; None if the device has no memory for it."""
    try:
        return fit_batch(spaces, labels)
    except torch.OutOfMemoryError:
        fitted = None
    # The error holds the frames that hold the tensors: memory is free only after the except block.
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return fitted


def _halved(size: int) -> int:
    if size == 1:
        raise ActcacheError(
            "the device is out of memory with one layer, expected room for its six settings. Use "
            "fewer train rows, or hide the GPU with CUDA_VISIBLE_DEVICES=."
        )
    log.warning(
        "actcache: the device is out of memory with %d layers at once; continuing with %d",
        size,
        size // 2,
    )
    return size // 2
