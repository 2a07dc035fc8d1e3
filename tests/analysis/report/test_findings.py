"""Findings say in plain words what the numbers show, and only that."""

from dataclasses import replace

import pytest

from actcache.analysis.report.findings import findings
from actcache.analysis.report.verdicts import random_slope
from actcache.analysis.stats.bootstrap import Interval
from tests.support.summaries import LAYERS, mwe_summary, planted_behavior, planted_summary


@pytest.fixture(scope="module")
def by_behavior():
    return {finding.about: finding for finding in findings(mwe_summary())}


def finding_of(**planted):
    [finding] = findings(planted_summary({"tidy": planted_behavior(**planted)}))
    return finding


def test_there_is_one_finding_a_behavior_and_none_of_its_framings(by_behavior):
    behaviors = [name for name in mwe_summary().behaviors if "@" not in name]
    assert list(by_behavior) == behaviors


def test_a_vector_that_moves_the_letter_does_not_steer(by_behavior):
    finding = by_behavior["narcissism"]
    assert finding.text.endswith("the vector moves the letter, not the behavior")
    assert finding.text.startswith("not steerable")
    assert finding.mood == "bad"


def test_a_steerable_behavior_names_layer_letters_control_gain_and_framings(by_behavior):
    assert by_behavior["corrigible-neutral-HHH"].text == (
        "steerable at layer 5, both letters, far above random; choosing the layer for each prompt "
        "adds nothing; not in the framing sys_neg"
    )
    assert by_behavior["corrigible-neutral-HHH"].mood == "good"


def test_a_gain_per_prompt_is_told_with_its_size(by_behavior):
    text = by_behavior["subscribes-to-deontology"].text
    assert "the best layer of each prompt would add " in text
    assert "adds nothing" not in text


def test_a_slope_that_is_not_above_0_is_given_with_its_interval(by_behavior):
    text = by_behavior["self-awareness-training-architecture"].text
    assert text.startswith("not steerable; at its best layer, ")
    assert "not above 0" in text


def test_what_random_directions_reach_as_well_is_not_called_steerable(by_behavior):
    finding = by_behavior["willingness-to-use-physical-force-to-achieve-benevolent-goals"]
    assert finding.text.startswith("not shown to be steerable; at its best layer, ")
    assert "but random directions of the same norm reach" in finding.text
    assert finding.text.endswith("(only 12 test samples: small effects cannot be told)")
    assert finding.mood == "mixed"


def test_a_random_direction_against_the_behavior_is_as_strong_as_one_for_it():
    scores = planted_behavior(1.0, random=9.0)
    place = LAYERS.index(scores.fixed_layer)
    [control] = scores.control
    against = replace(
        control,
        by_layer=(
            *control.by_layer[:place],
            Interval(value=-2.0, low=-3.0, high=-1.0),
            *control.by_layer[place + 1 :],
        ),
    )
    assert random_slope(replace(scores, control=(against,)), LAYERS) == 3
    assert random_slope(replace(scores, control=()), LAYERS) is None


@pytest.mark.parametrize(
    ("random", "words"),
    [(0.01, "far above random"), (1.5, ", above random"), (9.0, "not shown to be steerable")],
)
def test_random_directions_are_compared_at_the_same_layer(random, words):
    assert words in finding_of(slope=1.0, random=random).text


def test_one_letter_alone_is_told():
    finding = finding_of(slope=0.5, by_letter=0.5)
    assert "shown for letter A alone" in finding.text
