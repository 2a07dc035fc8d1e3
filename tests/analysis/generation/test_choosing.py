"""The strength is chosen on validation rows alone, as the definition says, and tested once."""

from dataclasses import replace

import numpy as np
import pytest

from actcache.analysis.generation.choosing import ChoiceRules, choose
from actcache.analysis.generation.metrics import TextMetrics
from actcache.analysis.generation.strength_table import (
    METRICS,
    Bootstrap,
    StrengthTable,
    effects,
    score_strength,
    strength_table,
)
from actcache.analysis.generation.texts import GeneratedText
from tests.reference.generation import chosen_strength

STRENGTHS = (-1.0, -0.5, 0.0, 0.5, 1.0)
N = 24
VALIDATION = np.arange(N) % 2 == 0
BOOTSTRAP = Bootstrap(draws=200)


def table_of(strengths, **values):
    """A table whose metrics are 0 but for those given, each `[strength, n]` or broadcast."""
    shape = (len(strengths), N)
    arrays = {name: np.zeros(shape) for name in METRICS}
    arrays["form"], arrays["ended"] = np.ones(shape), np.ones(shape)
    arrays |= {
        name: np.broadcast_to(np.array(v, float), shape).copy() for name, v in values.items()
    }
    return StrengthTable(strengths=tuple(strengths), values=arrays)


def random_tables(seed):
    rng = np.random.default_rng(seed)
    shape = (len(STRENGTHS), N)
    table = table_of(
        STRENGTHS,
        target=rng.normal(size=shape) + rng.normal(size=(5, 1)),
        nll_unsteered=rng.normal(size=shape, scale=0.3) + rng.uniform(0, 0.8, (5, 1)),
        form=rng.random(shape) < rng.uniform(0.8, 1, (5, 1)),
        ended=rng.random(shape) < rng.uniform(0.9, 1, (5, 1)),
    )
    unsteered = table_of(
        (0.0,),
        target=rng.normal(size=(1, N)),
        form=rng.random((1, N)) < 0.95,
        ended=rng.random((1, N)) < 0.95,
    )
    return table, unsteered


def choice_of(table, unsteered, *, controls=None, identity=0.0, unit="multiplier", **rules):
    return choose(
        table,
        unsteered,
        identity=identity,
        unit=unit,
        validation=VALIDATION,
        controls=controls or {},
        rules=ChoiceRules(**rules),
        bootstrap=BOOTSTRAP,
    )


@pytest.mark.parametrize("seed", range(40))
def test_the_choice_equals_the_definition(seed):
    table, unsteered = random_tables(seed)

    def rows(tabled, place):
        names = {"target": "target", "nll": "nll_unsteered", "form": "form", "ended": "ended"}
        return [
            {name: tabled.values[metric][place, i] for name, metric in names.items()}
            for i in np.flatnonzero(VALIDATION)
        ]

    by_strength = {s: rows(table, k) for k, s in enumerate(STRENGTHS)} | {None: rows(unsteered, 0)}
    expected = chosen_strength(by_strength, identity=0.0, budget=1.5, loss=0.05)

    choice = choice_of(table, unsteered)

    assert choice.strength == expected
    assert (choice.reason == "") == (expected is not None)


@pytest.mark.parametrize("seed", range(10))
def test_garbage_on_test_rows_changes_no_choice(seed):
    table, unsteered = random_tables(seed)
    rng = np.random.default_rng(99)
    garbage = {
        name: np.where(VALIDATION, values, rng.choice([np.nan, 1e6, -1e6], values.shape))
        for name, values in table.values.items()
    }
    before = choice_of(table, unsteered)
    after = choice_of(StrengthTable(strengths=STRENGTHS, values=garbage), unsteered)

    assert after.strength == before.strength
    assert after.reason == before.reason
    assert after.validation == before.validation
    assert after.window == before.window


def test_test_rows_are_scored_at_the_chosen_strength_and_the_best_on_test_is_named():
    target = np.zeros((5, N))
    target[3, VALIDATION] = 2
    target[4, ~VALIDATION] = 3
    target[3, ~VALIDATION] = 1
    choice = choice_of(table_of(STRENGTHS, target=target), table_of((0.0,)))

    assert choice.strength == 0.5
    assert choice.test is not None
    assert choice.test.effect is not None
    assert choice.test.effect.value == 1
    assert choice.best_on_test is not None
    assert choice.best_on_test.effect is not None
    assert (choice.best_on_test.strength, choice.best_on_test.effect.value) == (1.0, 3)


def test_the_budget_is_a_ratio_of_perplexities():
    target = np.arange(5.0)[:, None]
    for more, strength in ((np.log(1.49), 1.0), (np.log(1.51), 0.5)):
        nll = np.zeros((5, 1))
        nll[4] = more
        table = table_of(STRENGTHS, target=target, nll_unsteered=nll + 2)
        assert choice_of(table, table_of((0.0,), nll_unsteered=2)).strength == strength
    too_much = table_of(STRENGTHS, target=target, nll_unsteered=3)
    choice = choice_of(too_much, table_of((0.0,), nll_unsteered=2))
    assert choice.strength is None
    assert "within 1.5 ×" in choice.reason


@pytest.mark.parametrize("metric", ["form", "ended"])
def test_a_strength_that_loses_form_or_ending_is_not_chosen(metric):
    values = np.ones((5, N))
    values[4, np.flatnonzero(VALIDATION)[:2]] = 0  # 2 of 12
    table = table_of(STRENGTHS, target=np.arange(5.0)[:, None], **{metric: values})
    assert choice_of(table, table_of((0.0,))).strength == 0.5
    assert choice_of(table, table_of((0.0,)), loss=0.2).strength == 1.0
    none = table_of(STRENGTHS, **{metric: 0})
    assert "form and ending" in choice_of(none, table_of((0.0,))).reason


def test_the_identity_is_never_chosen_and_the_nearest_of_equals_is():
    target = np.array([1, 1, 9, 1, 1.0])[:, None]
    assert abs(choice_of(table_of(STRENGTHS, target=target), table_of((0.0,))).strength) == 0.5
    angles = (0.0, 90.0, 360.0)
    table = table_of(angles, target=np.array([9, 1, 9.0])[:, None])
    assert choice_of(table, table_of((0.0,)), unit="degrees").strength == 90
    assert choice_of(table, table_of((0.0,)), unit="degrees", identity=None).strength == 0
    alone = choice_of(table_of((0.0,)), table_of((0.0,)))
    assert (alone.strength, alone.reason) == (None, "no strength but the identity")


def test_the_window_is_around_the_identity():
    form = np.array([1, 0, 1, 1, 0.0])[:, None]
    assert choice_of(table_of(STRENGTHS, form=form), table_of((0.0,))).window == (0, 0.5)
    assert choice_of(table_of(STRENGTHS), table_of((0.0,))).window == (-1, 1)
    lost = table_of((0.5, 1.0), form=0)
    assert choice_of(lost, table_of((0.0,))).window == (0, 0)
    assert choice_of(lost, table_of((0.0,)), identity=None).window is None
    angles = (30.0, 90.0, 270.0, 330.0)
    table = table_of(angles, form=np.array([1, 0, 1, 1.0])[:, None])
    assert choice_of(table, table_of((0.0,)), unit="degrees").window == (-90, 30)
    assert choice_of(table, table_of((0.0,)), unit="degrees", identity=None).window == (270, 330)


def test_an_effect_is_shown_only_above_zero_and_above_every_control():
    rng = np.random.default_rng(0)
    target = np.zeros((5, N))
    target[4] = 1 + 0.1 * rng.normal(size=N)
    table, unsteered = table_of(STRENGTHS, target=target), table_of((0.0,))

    def shown(control):
        return choice_of(table, unsteered, controls={"random": control})

    weak = shown(table_of(STRENGTHS, target=0.2 * target))
    assert weak.shown
    assert weak.over_control["random"].low > 0
    up_and_down = np.where(np.arange(N) % 4 < 2, 0.3, -0.3)
    as_strong = shown(table_of(STRENGTHS, target=target + up_and_down))
    assert not as_strong.shown
    assert as_strong.over_control["random"].low <= 0
    assert not shown(table_of((0.5,), target=0)).shown  # the control was not run at that strength
    assert not choice_of(table_of(STRENGTHS, target=-target), unsteered).shown


def test_few_test_rows_show_nothing():
    target = np.zeros((5, N))
    target[4] = 1
    validation = np.arange(N) < N - 7
    choice = choose(
        table_of(STRENGTHS, target=target),
        table_of((0.0,)),
        identity=0.0,
        unit="multiplier",
        validation=validation,
        controls={},
        rules=ChoiceRules(),
        bootstrap=BOOTSTRAP,
    )
    assert choice.test is not None
    assert choice.test.effect is not None
    assert choice.test.effect.low == 1
    assert not choice.shown


def text(row, sample, **values):
    metrics = TextMetrics(
        n=4,
        ended=True,
        empty=False,
        n_bytes=9,
        repetition=None,
        compression=1.0,
        script=1.0,
        well_formed=True,
        refusal=False,
    )
    line = GeneratedText(
        **vars(metrics),
        id=row,
        behavior="tidy",
        split="test",
        configuration="c",
        sample=sample,
        text="x",
        tokens=(1, 2, 3, 4),
        nll_steered=1.0,
        nll_unsteered=1.0,
        target=1.0,
    )
    return replace(line, **values)


def test_samples_of_a_row_are_averaged_and_what_is_missing_is_left_out():
    texts = {
        1.0: [text("a", 0, target=1.0), text("a", 1, target=3.0), text("b", 0, target=None)],
        0.5: [text("b", 0, well_formed=False), text("a", 0, empty=True, well_formed=None)],
    }
    table = strength_table(texts, ["a", "b"])

    assert table.strengths == (0.5, 1.0)
    np.testing.assert_array_equal(table.values["target"], [[1, 1], [2, np.nan]])
    np.testing.assert_array_equal(table.values["form"], [[0, 0], [1, 1]])
    assert np.isnan(table.values["repetition"]).all()
    unsteered = strength_table({0.0: [text("a", 0, target=0.5), text("b", 0)]}, ["a", "b"])
    np.testing.assert_array_equal(effects(table, unsteered, 1), [1.5, np.nan])
    every = np.ones(2, bool)
    scores = score_strength(table, unsteered, 1, rows=every, bootstrap=BOOTSTRAP)
    assert scores.effect is not None
    assert (scores.n, scores.target, scores.effect.value, scores.repetition) == (2, 2, 1.5, None)


def test_a_collapsed_text_shows_in_nll_unsteered_though_the_steered_model_likes_it():
    table = strength_table({1.0: [text("a", 0, nll_steered=0.1, nll_unsteered=4.0)]}, ["a"])
    unsteered = strength_table({0.0: [text("a", 0, nll_steered=1.0, nll_unsteered=1.0)]}, ["a"])
    scores = score_strength(table, unsteered, 0, rows=np.ones(1, bool), bootstrap=BOOTSTRAP)
    assert scores.nll_steered == 0.1
    assert scores.perplexity_ratio == pytest.approx(np.exp(3))
