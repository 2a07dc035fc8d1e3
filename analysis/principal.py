"""Principal directions of rows: the same points in fewer, ordered coordinates.

Exact where all directions are kept: n rows span no more than n. Refuses to know what rows are.
"""

import numpy as np
from jaxtyping import Float32


def principal_basis(
    values: Float32[np.ndarray, "n e"], *, components: int | None = None
) -> tuple[Float32[np.ndarray, " e"], Float32[np.ndarray, "e p"]]:
    """Mean of the rows, and their principal directions, largest first, scaled by one number.

    Args:
        values: rows.
        components: how many directions at most; None takes all along which the rows differ.

    Returns:
        The mean, and the directions times the number that gives `(values - mean) @ basis` a mean
        square of 1. One zero direction where all rows are equal.
    """
    mean = values.mean(0, dtype=np.float64)
    centred = values - mean  # float64
    wide = centred.shape[1] > len(centred)
    # The smaller of the two products of `centred` with itself has the same spectrum.
    spectrum, vectors = np.linalg.eigh(centred @ centred.T if wide else centred.T @ centred)
    spectrum, vectors = spectrum[::-1], vectors[:, ::-1]
    kept = int((spectrum > 1e-10 * spectrum[0]).sum()) if spectrum[0] > 0 else 0
    kept = min(kept, components or kept)
    if not kept:
        return mean.astype(np.float32), np.zeros((len(mean), 1), np.float32)
    spectrum, vectors = spectrum[:kept], vectors[:, :kept]
    basis = centred.T @ (vectors / np.sqrt(spectrum)) if wide else vectors  # [e, p]
    scale = np.sqrt(len(values) * kept / spectrum.sum())
    return mean.astype(np.float32), (basis * scale).astype(np.float32)
