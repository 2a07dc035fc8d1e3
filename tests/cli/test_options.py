"""Lists of numbers on the command line."""

import pytest

from actcache.cli.options import numbers
from actcache.errors import ActcacheError


@pytest.mark.parametrize(
    ("text", "found"),
    [(None, None), ("3", [3]), ("3,5", [3, 5]), ("0:3,7", [0, 1, 2, 7]), ("9,1:2", [9, 1])],
)
def test_numbers_and_ranges_come_in_their_order_without_the_stop(text, found):
    assert numbers(text, "layers") == found


@pytest.mark.parametrize("text", ["", "a", "1,", "1:", ":2", "1.5", "1:2:3"])
def test_what_is_no_list_of_numbers_is_named(text):
    with pytest.raises(ActcacheError, match=f"^layers are '{text}', .* For example 0:100,205"):
        numbers(text, "layers")
