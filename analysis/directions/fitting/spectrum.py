"""Top eigenvector and largest diagonal entry of M = FᵀF, for many F at once and without M.

A full F is asked by few products (Lanczos), and both answers come from one Krylov basis. The rank
of an RFM's M falls fast: of 320 eigenvalues some 65 are above rounding after three iterations and
15 after five. So F soon has few rows, and is then decomposed as a whole.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float64
from torch import Tensor

FEW = 96
"""Rows of F up to which it is decomposed as a whole."""

ROUNDING = 1e-15
"""Share of |F|² that is left out for good: as much as a sum over all of it is rounded by."""

LEAST_STEPS, MOST_STEPS = 5, 40
TOLERANCE = 1e-7
"""Bound on the angle between the vector that Lanczos finds and the eigenvector."""

MARGIN = 1e-12
"""Share of |F|² that is added to bounds, so that rounding cannot lift a column above its own."""

BLOCK = 512
"""Rows of the model's basis that are multiplied out at a time: memory for few, in long products."""

TINY = 1e-150
"""What a zero length is divided by; its square is still a float64."""


@dataclass(frozen=True)
class Krylov:
    """An orthonormal basis V in which the largest eigenvalues of FᵀF are found, and F V."""

    basis: Float64[Tensor, "p r k"]
    images: Float64[Tensor, "p n k"]

    top: Float64[Tensor, "p r"]
    """Unit eigenvector of the largest eigenvalue, of either sign."""

    def of(self, problems: slice) -> "Krylov":
        """The part of some problems."""
        return Krylov(self.basis[problems], self.images[problems], self.top[problems])


def lanczos(f: Float64[Tensor, "p n r"], start: Float64[Tensor, "p r"]) -> Krylov:
    """Lanczos with full reorthogonalisation (Paige 1970; Golub & Van Loan, 10.3).

    After k steps the residual of the best vector y = V s is β |sₖ|, and its angle to the
    eigenvector at most that over the gap to the second value. What has not converged after
    `MOST_STEPS`, two nearly equal values, is left to a full eigendecomposition of those problems.
    """
    vectors, images = [unit(start)], []
    while True:
        images.append(_times(f, vectors[-1]))
        basis, image = torch.stack(vectors, 2), torch.stack(images, 2)
        following = _times(f.mT, images[-1])
        for _ in range(2):  # twice is enough (Kahan, in Parlett 1980)
            following = following - _times(basis, _times(basis.mT, following))
        beta = following.norm(dim=1)
        if len(vectors) >= LEAST_STEPS or len(vectors) == f.shape[2]:
            values, small = torch.linalg.eigh(image.mT @ image)
            gap = values[:, -1] - values[:, -2] if len(vectors) > 1 else values[:, -1]
            converged = beta * small[:, -1, -1].abs() <= TOLERANCE * gap
            if converged.all() or len(vectors) >= min(MOST_STEPS, f.shape[2]):
                break
        # Where the basis spans all of F, what follows is rounding: zero, it takes no part any more.
        empty = beta <= 1e-14 * image.flatten(1).norm(dim=1) ** 2
        beta = torch.where(empty, torch.inf, beta)
        vectors.append(following / beta[:, None])
    top = _times(basis, small[:, :, -1])
    for p in torch.nonzero(~converged)[:, 0].tolist():
        top[p] = torch.linalg.eigh(f[p].mT @ f[p])[1][:, -1]
    return Krylov(basis=basis, images=image, top=unit(top))


def decompose(f: Float64[Tensor, "p n r"]) -> tuple[Float64[Tensor, "p r"], Tensor]:
    """Top eigenvectors of FᵀF, and a factor of it with as few rows as are above rounding.

    With the eigenvectors W of FFᵀ, WᵀF has the rows √λ vᵀ: those of small λ are left out, as many
    as all problems can do without.
    """
    values, left = torch.linalg.eigh(f @ f.mT)  # rising
    rows = left.mT @ f
    left_out = values.clamp(min=0).cumsum(1)
    needed = int((left_out > ROUNDING * left_out[:, -1:]).sum(1).max())
    return unit(rows[:, -1]), rows[:, -max(needed, 1) :]


def shortened(f: Float64[Tensor, "p n r"]) -> Float64[Tensor, "p m r"]:
    """A factor of the same FᵀF with `FEW` rows, if what that leaves out is rounding; or F.

    From a random sketch of F's rows (Halko, Martinsson & Tropp 2011), whose error is computed: with
    V a basis of the sketch, FᵀF is V (F V)ᵀ(F V) Vᵀ but for |F - F V Vᵀ|².
    """
    generator = torch.Generator().manual_seed(0)
    mix = torch.randn(f.shape[1], FEW, generator=generator, dtype=f.dtype).to(f.device)
    basis = torch.linalg.qr(f.mT @ mix)[0]
    images = f @ basis
    left_out = (f - images @ basis.mT).square_().sum((1, 2))
    if (left_out > ROUNDING * f.square().sum((1, 2))).any():
        return f
    few: Tensor = _triangle(images) @ basis.mT
    return few


def fewest_rows(f: Float64[Tensor, "p n m"]) -> Float64[Tensor, "p _ m"]:
    """A factor of the same FᵀF with no more rows than columns."""
    return _triangle(f) if f.shape[1] > f.shape[2] else f


def largest_diagonal(
    f: Float64[Tensor, "p n r"], rows: Float64[Tensor, "d r"], krylov: Krylov | None = None
) -> Float64[Tensor, " p"]:
    """The largest entry of Q FᵀF Qᵀ, which is maxⱼ |F qⱼ|² over the rows qⱼ of Q, exactly.

    A positive semidefinite matrix has its largest entry on its diagonal. Of qⱼ = V c + e with e
    outside the Krylov basis, |F qⱼ| ≤ |F V c| + |F e| ≤ |F V c| + |e| √t (Cauchy & Schwarz), where
    t = |F|² - |F V|² bounds what F does outside. Only rows whose bound reaches the best value known
    so far are multiplied out.
    """
    if krylov is None:
        return torch.stack([_largest_image(problem, rows) for problem in f])
    problems, _, k = krylov.basis.shape
    flat = krylov.basis.permute(1, 0, 2).reshape(-1, problems * k)
    coordinates = (rows @ flat).reshape(-1, problems, k).transpose(0, 1)  # [p, d, k]
    inner = krylov.images.mT @ krylov.images
    inside = ((coordinates @ inner) * coordinates).sum(2).clamp(min=0)  # |F V c|²
    length = torch.einsum("dr,dr->d", rows, rows)
    outside = (length - (coordinates * coordinates).sum(2)).clamp(min=0)  # |e|²
    squared = torch.einsum("pnr,pnr->p", f, f)
    rest = (squared - inner.diagonal(dim1=1, dim2=2).sum(1)).clamp(min=0)
    slack = MARGIN * squared[:, None]
    bound = (inside.sqrt() + (outside * rest[:, None] + slack).sqrt()) ** 2 + slack
    largest = []
    for p in range(problems):
        best = (f[p] @ rows[inside[p].argmax()]).square().sum()
        candidates = torch.nonzero(bound[p] >= best)[:, 0]
        parts = [_largest_image(f[p], rows[part]) for part in candidates.split(BLOCK)]
        largest.append(torch.stack(parts).max())
    return torch.stack(largest)


def unit(vectors: Float64[Tensor, "p r"]) -> Float64[Tensor, "p r"]:
    """Scale vectors to norm 1; zero stays zero."""
    length: Tensor = vectors.norm(dim=1, keepdim=True)
    return vectors / length.clamp(min=TINY)


def _largest_image(f: Float64[Tensor, "n r"], rows: Float64[Tensor, "_ r"]) -> Float64[Tensor, ""]:
    """The largest |F q|² over rows q, a block of them at a time."""
    return torch.stack([(part @ f.T).square_().sum(1).max() for part in rows.split(BLOCK)]).max()


def _triangle(f: Float64[Tensor, "p n m"]) -> Float64[Tensor, "p _ m"]:
    triangle: Tensor = torch.linalg.qr(f, mode="r")[1]
    return triangle


def _times(
    matrices: Float64[Tensor, "p a b"], vectors: Float64[Tensor, "p b"]
) -> Float64[Tensor, "p a"]:
    if matrices.is_cuda:
        return (matrices @ vectors[:, :, None])[:, :, 0]
    # On a CPU, products with one vector each are 4.6 times as fast as the batched product.
    return torch.stack([m @ v for m, v in zip(matrices, vectors, strict=True)])
