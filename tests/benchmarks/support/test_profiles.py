"""Are the operators of a trace counted under the right kind?"""

import time

import pytest

from benchmarks.support.profiles import kind_of, profile


@pytest.mark.parametrize(
    ("operator", "kind"),
    [
        ("aten::addmm", "matrix products"),
        ("aten::bmm", "attention"),
        ("aten::_scaled_dot_product_flash_attention_for_cpu", "attention"),
        ("aten::native_layer_norm", "norms and activations"),
        ("aten::copy_", "copies"),
        ("aten::mul", "elementwise"),
        ("aten::sort", "other"),
    ],
)
def test_operators_are_counted_by_kind(operator, kind):
    assert kind_of(operator) == kind


def test_time_outside_operators_is_reported(tmp_path):
    shares = profile(lambda: time.sleep(0.02), tmp_path, name="Sleep: a while")

    assert shares["Sleep: a while, share of time: outside operators"] > 0.9
    assert (tmp_path / "sleep-a-while.trace.json").exists()
