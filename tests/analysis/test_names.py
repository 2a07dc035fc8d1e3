"""Keys and file names: plain, and no two of them the same."""

import doctest
import re

from hypothesis import given
from hypothesis import strategies as st

from actcache.analysis import names
from actcache.analysis.names import slugs, strategy_label, w2s


@given(st.lists(st.text(), unique=True))
def test_slugs_are_plain_and_each_names_one_thing(texts):
    plain = slugs(texts)
    assert list(plain) == texts
    assert len({slug.lower() for slug in plain.values()}) == len(texts)
    for slug in plain.values():
        assert re.fullmatch(r"[a-z0-9_-]{1,70}", slug)


def test_a_slug_says_what_it_is_of_where_it_can():
    assert slugs(["cache:3"]) == {"cache:3": "cache-3"}
    same = slugs(["power seeking", "Power-Seeking"])
    assert all(slug.startswith("power-seeking-") for slug in same.values())


def test_every_strategy_has_a_label():
    assert strategy_label(w2s(2)) == "W2S Top-2"
    assert strategy_label("cross_fitted") == "cross-fitted"
    assert strategy_label("second") == "second"


def test_the_examples_run():
    assert doctest.testmod(names).failed == 0
