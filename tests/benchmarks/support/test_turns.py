"""Are variants measured in turns, and is the ratio taken within a round?"""

from benchmarks.support.turns import in_turns, ratio


def test_the_first_round_is_discarded_and_the_order_kept():
    order = []

    took = in_turns({"a": lambda: order.append("a"), "b": lambda: order.append("b")}, repeats=2)

    assert order == ["a", "b"] * 3
    assert {name: len(seconds) for name, seconds in took.items()} == {"a": 2, "b": 2}


def test_the_ratio_is_the_median_of_quotients_within_a_round():
    took = {"ours": [1.0, 2.0, 30.0], "other": [2.0, 2.0, 10.0]}

    assert ratio(took, "ours", "other") == 1.0  # of 0.5, 1 and 3
