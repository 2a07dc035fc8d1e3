"""float16 to float32, exactly, several times as fast as NumPy's own cast.

Values that are not finite are refused: the store holds none, and the cast is fast since it leaves
their cases out.
"""

import numpy as np
from jaxtyping import Float16, Float32

from actcache.errors import NotFiniteError

_BLOCK = 2**16  # elements at a time: they stay in a core's cache from the first step to the last


def to_float32(
    values: Float16[np.ndarray, "*shape"], *, out: Float32[np.ndarray, "*shape"] | None = None
) -> Float32[np.ndarray, "*shape"]:
    """Convert finite float16 values to float32, bit for bit as `astype` does.

    The sign and the 15 other bits move to where float32 has them; the exponent's bias is then still
    float16's, which a product with 2^112 corrects, for subnormals as well.

    `out` is a C-contiguous array to write to and return; by default a new one, in the memory order
    of the values.

    Raises:
        NotFiniteError: an infinity or NaN is among the values.
    """
    if out is None:
        out = np.empty_like(values, np.float32)
    if out.strides == tuple(2 * step for step in values.strides):  # so neither has gaps
        flat, wide = values.ravel(order="K"), out.ravel(order="K")
        finite = all(
            _convert(flat[start : start + _BLOCK], wide[start : start + _BLOCK])
            for start in range(0, flat.size, _BLOCK)
        )
    else:
        finite = _convert(values, out)
    if not finite:
        place = tuple(int(i) for i in np.argwhere(~np.isfinite(values))[0])
        raise NotFiniteError(
            f"the float16 value at {place} is {values[place]}, expected finite ones. "
            f"Cache residuals that overflow float16 as float32 or bfloat16."
        )
    return out


def _convert(values: Float16[np.ndarray, "*shape"], out: Float32[np.ndarray, "*shape"]) -> bool:
    """Convert unless a value is not finite, and tell whether all are."""
    bits = values.view(np.int16)
    # Infinity and NaN have the largest bits of their sign, as an int16 or without sign.
    if values.size and (bits.max() >= 0x7C00 or values.view(np.uint16).max() >= 0xFC00):
        return False
    wide = out.view(np.int32)
    np.copyto(wide, bits)  # faster than a shift that widens
    np.left_shift(wide, 13, out=wide)
    np.bitwise_and(wide, np.int32(-0x70000001), out=wide)  # keep the first of the four sign bits
    np.multiply(out, np.float32(2.0**112), out=out)
    return True
