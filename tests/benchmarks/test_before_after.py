"""Are both checkouts measured in turns, and are the ratios taken within a round?"""

from pathlib import Path

import pytest

from benchmarks.before_after import Checkout, check_imports, ratio_table

ROOT = Path(__file__).parents[2]


def test_ratios_are_medians_over_rounds_of_new_over_old():
    rounds = [
        {"old": {"build": (1.0, 2.0)}, "new": {"build": (cpu, 2.0 * cpu)}}
        for cpu in (1.0, 3.0, 1.5)
    ]

    _, [work, cpu, spread, wall, *seconds] = ratio_table(rounds)

    assert (work, cpu, spread, wall) == ("build", "1.50", "1.00 to 3.00", "1.50")
    assert seconds == ["1", "1.5"]


def test_a_checkout_runs_its_own_code(tmp_path):
    (tmp_path / "actcache").mkdir()
    (tmp_path / "actcache" / "__init__.py").write_text("WHO = 'old'\n")

    checkout = Checkout("old", tmp_path, tmp_path)
    check_imports(checkout)
    (cpu, wall), printed = checkout.run("-c", "import actcache; print(actcache.WHO)")

    assert printed == "old\n"
    assert cpu > 0
    assert wall > 0


def test_work_that_fails_stops_the_comparison(tmp_path):
    with pytest.raises(SystemExit, match=r"old: -c raise ValueError\(3\) failed"):
        Checkout("old", ROOT, tmp_path).run("-c", "raise ValueError(3)")
