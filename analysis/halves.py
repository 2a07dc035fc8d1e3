"""float16 to float32, exactly, several times as fast as NumPy's own cast.

Refuses to know what the numbers are. Values that are not finite are refused too: the store holds
none, and leaving their cases out is what makes this fast.
"""

import numpy as np
from jaxtyping import Float16, Float32

from actcache.errors import NotFiniteError


def float32_of(
    values: Float16[np.ndarray, "*shape"], *, out: Float32[np.ndarray, "*shape"] | None = None
) -> Float32[np.ndarray, "*shape"]:
    """Convert finite float16 values to float32, bit for bit as `astype` does.

    The sign and the 15 other bits move to where float32 has them; what is still wrong is the
    exponent's bias, and a product with 2^112 mends it, for subnormals as well.

    Args:
        values: any shape and memory order.
        out: C-contiguous array to write to, and to return; a new one without it.

    Raises:
        NotFiniteError: an infinity or NaN is among the values.
    """
    bits = values.view(np.int16)
    if values.size and np.bitwise_and(bits, 0x7C00).max() == 0x7C00:
        at = tuple(int(i) for i in np.argwhere(~np.isfinite(values))[0])
        raise NotFiniteError(
            f"the float16 value at {at} is {values[at]}, expected finite ones. "
            f"Cache residuals that overflow float16 as float32 or bfloat16."
        )
    if out is None:
        out = np.empty(values.shape, np.float32)
    wide = out.view(np.int32)
    np.left_shift(bits, 13, out=wide, dtype=np.int32)
    np.bitwise_and(wide, np.int32(-0x70000001), out=wide)  # keep the first of the four sign bits
    np.multiply(out, np.float32(2.0**112), out=out)
    return out
