import numpy as np
import pytest

from actcache.analysis.stats.float16 import to_float32
from actcache.errors import NotFiniteError


def test_every_finite_float16_converts_as_numpy_does():
    every = np.arange(2**16, dtype=np.uint16).view(np.float16)
    finite = every[np.isfinite(every)]
    strided = finite.reshape(2, -1).T[::3]
    layers_first = finite.reshape(31, -1, 8).swapaxes(0, 1)

    for values in (finite, strided, layers_first, layers_first[:, 1:], finite[:0], finite[5:6]):
        expected = values.astype(np.float32)
        np.testing.assert_array_equal(to_float32(values).view(np.uint32), expected.view(np.uint32))
        np.testing.assert_array_equal(np.signbit(to_float32(values)), np.signbit(values))
        out = np.empty(values.shape, np.float32)
        assert to_float32(values, out=out) is out
        np.testing.assert_array_equal(out, expected)


@pytest.mark.parametrize("value", [np.inf, -np.inf, np.nan])
def test_a_float16_that_is_not_finite_is_refused(value):
    with pytest.raises(NotFiniteError, match=r"at \(1, 0\).*float32 or bfloat16"):
        to_float32(np.array([[1.0], [value]], np.float16))
