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

import logging
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from jaxtyping import Float64
from torch import Tensor

from actcache.analysis.directions.fitting.choice import LayerFit, LayerLabels, pearson
from actcache.analysis.directions.fitting.krylov import (
    Krylov,
    largest_diagonal,
    top_eigenvectors,
)
from actcache.analysis.directions.fitting.row_space import CentredRows, RowSpace
from actcache.errors import ActcacheError

log = logging.getLogger("actcache")

BANDWIDTHS = (1.0, 10.0, 100.0)
"""L, each with rows as they are and scaled to norm 1 once more after centring: six settings."""

ITERATES = 9
"""Of ten iterations, M₁ … M₉. The published code judges M₀ = I too, whose eigenvector is any."""

RIDGE = 1e-3

FitBatch = Callable[[Sequence[RowSpace], Sequence[LayerLabels]], list[LayerFit]]

TINY = 1e-150
"""Squared, still a float64: what zero is divided by."""

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
    centred = [space.centred(unit_rows=True) for space in spaces]
    scaled = [(rows, rows.scaled_to_unit()) for rows in centred]
    tops = torch.stack(
        list(
            rfm_iterates(
                _tensor([[rows.train for rows in both] for both in scaled], device),
                _tensor([y.train for y in labels], device),
                [None if s.basis is None else _tensor(s.basis, device) for s in spaces],
                BANDWIDTHS,
                ITERATES,
            )
        ),
        dim=3,
    )  # [layer, scaling, bandwidth, iterate, r]
    return [
        _chosen(top, both, y.validation)
        for top, both, y in zip(tops.cpu().numpy(), scaled, labels, strict=True)
    ]


def _chosen(
    tops: Float64[np.ndarray, "2 bandwidth iterate r"],
    scaled: tuple[CentredRows, CentredRows],
    labels: Float64[np.ndarray, " m"],
) -> LayerFit:
    """The setting and iterate whose projections correlate best with validation labels."""
    flat = [vectors.reshape(-1, vectors.shape[-1]) for vectors in tops]
    scores = np.abs(
        [
            pearson(rows.validation @ vectors.T, labels)
            for rows, vectors in zip(scaled, flat, strict=True)
        ]
    ).reshape(tops.shape[:-1])
    scaling, bandwidth, iterate = np.unravel_index(
        np.argmax(np.nan_to_num(scores, nan=-1)), scores.shape
    )
    return LayerFit(
        weights=tops[scaling, bandwidth, iterate],
        setting={
            "bandwidth": BANDWIDTHS[bandwidth],
            "unit_again": bool(scaling),
            "iterate": int(iterate) + 1,
        },
        validation=float(scores[scaling, bandwidth, iterate]),
    )


def rfm_iterates(
    rows: Float64[Tensor, "layer scaling n r"],
    labels: Float64[Tensor, "layer n"],
    bases: Sequence[Float64[Tensor, "d r"] | None],
    bandwidths: Sequence[float],
    iterates: int,
) -> Iterator[Float64[Tensor, "layer scaling bandwidth r"]]:
    """Yield the top eigenvectors of M₁, M₂, …, of either sign, in the rows' coordinates.

    Args:
        rows: centred rows of each layer, scaled in one or several ways.
        labels: of each layer's rows.
        bases: of each layer the model's basis, in which the largest entry of M is looked for; None
            where the rows' coordinates are the model's.
        bandwidths: L of the kernel.
        iterates: how many.
    """
    layers, scalings, n, r = rows.shape
    settings = scalings * len(bandwidths)
    x = rows[:, :, None].expand(-1, -1, len(bandwidths), -1, -1).reshape(-1, n, r)
    y = labels.repeat_interleave(settings, 0)
    width = torch.tensor(bandwidths, dtype=rows.dtype, device=rows.device)
    width = width.repeat(layers * scalings)[:, None, None]
    # A start for the eigenvectors that is near them, and not at right angles to any of them.
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(r, generator=generator, dtype=rows.dtype).to(rows.device) / r**0.5
    top = ((y - y.mean(1, keepdim=True))[:, None, :] @ x)[:, 0]
    factor: Tensor | None = None
    for iterate in range(iterates):
        # |xᵢ - xⱼ|_M = |yᵢ - yⱼ| for the rows Y = X Fᵀ.
        embedded = x if factor is None else x @ factor.mT
        gradients = _gradient_weights(embedded, y, width) @ embedded
        factor = gradients if factor is None else gradients @ factor
        krylov = top_eigenvectors(factor, _unit(top) + 0.1 * noise)
        top = krylov.top
        yield top.reshape(layers, scalings, len(bandwidths), r)
        if iterate + 1 < iterates:
            factor = factor / _largest_entries(factor, krylov, bases).sqrt()[:, None, None]


def _largest_entries(
    factor: Float64[Tensor, "p n r"], krylov: Krylov, bases: Sequence[Float64[Tensor, "d r"] | None]
) -> Float64[Tensor, " p"]:
    """The largest entry of each M = FᵀF in the model's basis; the problems of a layer share one."""
    settings = len(factor) // len(bases)
    largest = []
    for place, basis in enumerate(bases):
        layer = slice(place * settings, (place + 1) * settings)
        largest.append(
            factor[layer].square().sum(1).amax(1)
            if basis is None
            else largest_diagonal(factor[layer], krylov.of(layer), basis)
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


def _unit(vectors: Float64[Tensor, "p r"]) -> Float64[Tensor, "p r"]:
    return vectors / vectors.norm(dim=1, keepdim=True).clamp(min=TINY)


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
