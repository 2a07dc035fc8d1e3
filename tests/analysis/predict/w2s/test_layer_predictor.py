import dataclasses
import json
from itertools import product
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file, save_file
from sklearn.linear_model import LogisticRegression

from actcache.analysis.predict.w2s.cross_validate import (
    DRAWS,
    choose,
    fixed_reached,
    search,
    shared_rows,
)
from actcache.analysis.predict.w2s.folds import equal_rows, grouped_folds
from actcache.analysis.predict.w2s.layer_predictor import LayerPredictor, train_layer_predictors
from actcache.analysis.predict.w2s.mlp_stack import Shape, batch_orders, initial_weights
from actcache.analysis.predict.w2s.settings import W2SSettings
from actcache.analysis.stats.pca import principal_basis
from actcache.analysis.sweep.layer_ranks import active_layers, layer_frequencies, smoothed_labels
from actcache.errors import FormatError, MismatchError, NotFiniteError, StoreNotFoundError
from tests.reference import predict as reference
from tests.reference.sweep import frequencies, smoothed_label
from tests.support.processes import run_code

SMALL = W2SSettings(
    rates=(0.003, 0.01), widths=(16,), depths=(1,), decays=(0.1,), epochs=(10, 30), top=(1, 2),
    batch=64, seeds=3,
)  # fmt: skip
BEST = np.array([1, 4, 6])
"""The best layer of each topic of the planted problem."""


def planted(seed=0, n=300, e=24, n_layers=8, noise=0.3):
    """Embeddings of three topics, slopes with a bump at the topic's layer, the topic's layer."""
    rng = np.random.default_rng(seed)
    topic = rng.integers(3, size=n)
    embeddings = rng.standard_normal((n, e)) / 4 + rng.standard_normal((3, e))[topic]
    embeddings = (embeddings / np.linalg.norm(embeddings, axis=1)[:, None]).astype(np.float32)
    distance = np.arange(n_layers) - BEST[topic][:, None]
    slope = 1.5 * np.exp(-(distance**2)) + noise * rng.standard_normal((n, n_layers))
    return embeddings, slope, BEST[topic]


def trained(embeddings, slope, *, asked=SMALL, n_train=None, **changed):
    n = len(embeddings)
    given: dict[str, Any] = {
        "train": np.arange(n) < (n // 2 if n_train is None else n_train),
        "groups": [f"prompt {i}" for i in range(n)],
        "letters": ["A", "B"] * (n // 2) + ["A"] * (n % 2),
        "layers": np.arange(slope.shape[1]),
    }
    return train_layer_predictors(embeddings, slope, settings=asked, **(given | changed))


def reached(slope, places):
    return slope[np.arange(len(slope)), places].mean()


@pytest.fixture(scope="module")
def predictors():
    return trained(*planted()[:2])


# --- what it learns -------------------------------------------------------------------------------


def test_a_layer_that_follows_from_the_embedding_is_recovered(predictors):
    embeddings, slope, best = planted()
    test = np.arange(len(slope)) >= len(slope) // 2
    oracle, fixed = slope[test].max(1).mean(), slope[test, slope[~test].mean(0).argmax()].mean()
    for predictor in predictors.values():
        places = predictor.places(embeddings[test])
        assert (places == best[test]).mean() > 0.9
        value = reached(slope[test], places)
        assert fixed + 0.8 * (oracle - fixed) < value < oracle
        assert predictor.cv_gain > 5 * predictor.cv_gain_error
        np.testing.assert_allclose(predictor.cv_crossfit, value, atol=0.1)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_shuffled_embeddings_gain_nothing(seed):
    embeddings, slope, _ = planted(seed)
    mixed = np.random.default_rng(seed).permutation(embeddings)
    for predictor in trained(mixed, slope).values():
        assert predictor.cv_gain < 2 * predictor.cv_gain_error
        fixed = slope[150:, slope[:150].mean(0).argmax()].mean()
        # 0.15 is three standard errors over 150 samples; what there is to gain is above 0.8.
        assert reached(slope[150:], predictor.places(mixed[150:])) < fixed + 0.15


def test_where_nothing_can_be_learnt_the_corrected_value_is_not_above_fixed():
    rng = np.random.default_rng(0)
    gains, plain = [], []
    asked = dataclasses.replace(SMALL, rates=(0.001, 0.01), epochs=(1, 5, 20), top=(1,))
    for seed in range(4):
        embeddings, _, _ = planted(seed, n=80)
        slope = rng.standard_normal((80, 6))
        (predictor,) = trained(embeddings, slope, asked=asked, n_train=80).values()
        gains.append(predictor.cv_gain / predictor.cv_gain_error)
        plain.append(predictor.cv_value - predictor.cv_crossfit)
    assert max(gains) < 2
    assert min(plain) > 0  # the largest of a table of noise is too large


def test_a_linear_classifier_of_scikit_learn_agrees(predictors):
    embeddings, slope, _ = planted()
    test = np.arange(len(slope)) >= len(slope) // 2
    labels = slope.argmax(1)
    linear = LogisticRegression(C=100).fit(embeddings[~test], labels[~test])
    places = predictors[1].places(embeddings[test])
    assert (places == linear.predict(embeddings[test])).mean() > 0.9


# --- how it searches ------------------------------------------------------------------------------


def test_the_search_is_that_of_networks_trained_alone():
    embeddings, slope, _ = planted(n=101)
    asked = W2SSettings(
        rates=(0.003, 0.02), widths=(8, 12), depths=(1, 2), decays=(0.0, 1.0), epochs=(2, 5),
        batch=32, folds=2, top=(1, 2),
    )  # fmt: skip
    center, basis = principal_basis(embeddings)
    # float64, so that rounding flips no prediction.
    inputs = ((embeddings - center) @ basis).astype(np.float64)
    fold = grouped_folds([str(i) for i in range(101)], ["A"] * 101, n_folds=2, seed=0)
    reached_by_search = search(inputs, slope, fold, asked, "cpu", lambda _: None)
    expected = np.empty_like(reached_by_search)
    for number, (t, top) in product(range(2), enumerate(asked.top)):
        inside, held_out = np.flatnonzero(fold != number), np.flatnonzero(fold == number)
        frequency = frequencies(slope[inside])
        labels = [smoothed_label(row, top, frequency) for row in slope[inside]]
        part = shared_rows(
            inputs[inside], np.array([labels]), slope.shape[1], [0, 0, number], inputs[held_out]
        )
        for r, w, d, c in np.ndindex(2, 2, 2, 2):
            shape = Shape(
                n_inputs=inputs.shape[1],
                width=asked.widths[w],
                depth=asked.depths[d],
                n_outputs=slope.shape[1],
            )
            _, predicted, _ = reference.classifier_alone(
                part,
                0,
                start=initial_weights(part.seed, shape),
                orders=batch_orders(part.seed, len(inside)),
                rate=asked.rates[r],
                decay=asked.decays[c],
                epochs=asked.epochs,
                batch=asked.batch,
            )
            for e, places in enumerate(predicted):
                for i, place in zip(held_out, places, strict=True):
                    expected[t, i, r, w, d, c, e] = slope[i, place]
    np.testing.assert_array_equal(reached_by_search, expected)
    fixed = fixed_reached(slope, fold)
    for t in range(2):
        choice = choose(reached_by_search[t], fixed, asked)
        best = max(np.ndindex(choice.table.shape), key=lambda at: expected[t][:, *at].mean())
        assert choice.setting.rate == asked.rates[best[0]]
        assert choice.setting.width == asked.widths[best[1]]
        assert choice.setting.depth == asked.depths[best[2]]
        assert choice.setting.decay == asked.decays[best[3]]
        assert choice.setting.epochs == asked.epochs[best[4]]
    np.testing.assert_allclose(fixed.mean(), reference.fixed_layer_cv(slope, fold), rtol=1e-12)


def test_a_fold_is_taught_by_its_own_train_part_alone():
    embeddings, slope, _ = planted(n=60, noise=1.0)
    fold = grouped_folds([str(i) for i in range(60)], ["A"] * 60, n_folds=2, seed=0)
    held_out = np.flatnonzero(fold == 1)
    other = slope.copy()
    other[held_out] = np.random.default_rng(0).standard_normal((len(held_out), slope.shape[1]))
    other[held_out, 3] += 9  # would be the commonest layer of all
    plain, changed = (
        search(embeddings, table, fold, SMALL, "cpu", lambda _: None)[:, held_out, 0, 0, 0, 0, 1]
        == table[held_out].T[:, None]  # no two slopes are equal, so they tell the layer
        for table in (slope, other)
    )  # [layer, top, held out]
    assert (plain.sum(0) == 1).all()
    np.testing.assert_array_equal(plain, changed)


def test_a_network_may_choose_the_layers_of_its_own_labels():
    part = shared_rows(
        np.eye(3, dtype=np.float32), np.array([[0, 2, 2], [1, 1, 1]]), 4, [0], np.eye(3)
    )
    allowed = [[True, False, True, False], [False, True, False, False]]
    np.testing.assert_array_equal(part.allowed, allowed)


@pytest.mark.parametrize("seed", range(5))
def test_the_fixed_layer_of_a_fold_is_chosen_on_the_others(seed):
    rng = np.random.default_rng(seed)
    slope, fold = rng.standard_normal((30, 6)), rng.permutation(30) % 4
    expected = reference.fixed_layer_cv(slope, fold)
    np.testing.assert_allclose(fixed_reached(slope, fold).mean(), expected, rtol=1e-12)


def test_the_best_of_many_equal_points_is_corrected_to_what_it_is_worth():
    asked = W2SSettings(epochs=tuple(range(1, 11)))
    sizes = [len(getattr(asked, name)) for name in ("rates", "widths", "depths", "decays")]
    plain, corrected = [], []
    for seed in range(20):
        reached = np.random.default_rng(seed).standard_normal((100, *sizes, 10))
        choice = choose(reached, np.zeros(100), asked)
        plain.append(choice.table.max())
        corrected.append(choice.gain.mean())
    # Means of 100 are 0.1 off; of the 160 points the largest. 0.06 is above two standard errors.
    assert np.mean(plain) > 0.2
    np.testing.assert_allclose(np.mean(corrected), 0, atol=0.06)


def test_gain_and_its_error_are_of_points_chosen_without_the_sample():
    asked = W2SSettings(rates=(0.1,), widths=(4,), depths=(1,), decays=(0.0,), epochs=(1, 2, 3))
    rng = np.random.default_rng(0)
    reached, fixed = rng.standard_normal((12, 1, 1, 1, 1, 3)), rng.standard_normal(12)
    drawn = np.random.default_rng([asked.seed, 2]).integers(12, size=(DRAWS, 12))
    expected = []
    for sample in range(12):
        without = [rows for rows in drawn if sample not in rows]
        best = [reached[rows].mean(0).argmax() for rows in without]
        expected.append(np.mean([reached[sample].ravel()[point] for point in best]) - fixed[sample])
    np.testing.assert_allclose(choose(reached, fixed, asked).gain, expected, rtol=1e-12)


def test_the_chosen_point_is_the_best_of_the_table(predictors):
    for predictor in predictors.values():
        assert predictor.cv_value == predictor.cv.max()
        at = [
            getattr(SMALL, axis).index(getattr(predictor.chosen, name))
            for axis, name in (
                ("rates", "rate"),
                ("widths", "width"),
                ("depths", "depth"),
                ("decays", "decay"),
                ("epochs", "epochs"),
            )
        ]
        assert predictor.cv[tuple(at)] == predictor.cv_value


def test_only_layers_of_train_labels_are_predicted(predictors):
    embeddings, slope, _ = planted()
    for top, predictor in predictors.items():
        frequency = layer_frequencies(slope[:150])
        labels = smoothed_labels(slope[:150], top=top, frequency=frequency)
        np.testing.assert_array_equal(predictor.active, active_layers(labels))
        assert set(predictor.places(embeddings).ravel()) <= set(predictor.active)


def test_the_same_seed_gives_the_same_predictor_and_another_one_another():
    embeddings, slope, _ = planted(n=80)
    asked = dataclasses.replace(SMALL, top=(1,), rates=(0.01,))
    one, two, three = (
        trained(embeddings, slope, asked=dataclasses.replace(asked, seed=seed))[1]
        for seed in (0, 0, 1)
    )
    for (w, b), (again, bias), (other, _) in zip(
        one.weights, two.weights, three.weights, strict=True
    ):
        np.testing.assert_array_equal(w, again)
        np.testing.assert_array_equal(b, bias)
        assert w.shape != other.shape or (w != other).any()
    assert (one.weights[0][0][0] != one.weights[0][0][1]).any()  # nor are two seeds' networks


def test_rows_outside_train_are_never_read(predictors):
    embeddings, slope, _ = planted()
    spoilt, slope = embeddings.copy(), slope.copy()
    spoilt[150:], slope[150:] = np.nan, np.nan
    again = trained(spoilt, slope)
    np.testing.assert_array_equal(again[2].places(embeddings), predictors[2].places(embeddings))


def test_all_networks_are_counted():
    embeddings, slope, _ = planted(n=60)
    done: list[int] = []
    trained(embeddings, slope, on_network=done.append)
    assert sum(done) == SMALL.n_networks == 2 * (2 * 5 + 3)


# --- the front door -------------------------------------------------------------------------------


def test_fit_gives_the_predictor_that_gained_most_in_cross_validation(predictors):
    embeddings, slope, _ = planted()
    n = len(embeddings)
    given: dict[str, Any] = {
        "rows": np.arange(n) < n // 2,
        "letters": np.array(["A", "B"] * (n // 2)),
    }
    best = max(predictors.values(), key=lambda predictor: predictor.cv_gain)

    for values in (embeddings, SimpleNamespace(values=embeddings)):
        predictor = LayerPredictor.fit(
            values, slope, groups=[f"prompt {i}" for i in range(n)], settings=SMALL, **given
        )
        assert predictor.top == best.top
        np.testing.assert_array_equal(predictor.predict(embeddings), best.predict(embeddings))


def test_by_default_samples_of_equal_embeddings_are_one_prompt():
    embeddings, slope, _ = planted(n=60)
    twice, slopes = np.repeat(embeddings, 2, axis=0), np.repeat(slope, 2, axis=0)
    twice[::2] *= 1 + 1e-6  # as another batch would round them
    rows = np.arange(120) < 80
    asked = dataclasses.replace(SMALL, top=(1,))

    predictor = LayerPredictor.fit(twice, slopes, rows=rows, settings=asked)
    named = LayerPredictor.fit(
        twice, slopes, rows=rows, groups=np.repeat(equal_rows(embeddings), 2), settings=asked
    )
    alone = LayerPredictor.fit(
        twice, slopes, rows=rows, groups=[str(i) for i in range(120)], settings=asked
    )

    np.testing.assert_array_equal(predictor.cv, named.cv)
    assert (predictor.cv != alone.cv).any()


@pytest.mark.parametrize("n", [1, 7, 300])
def test_rows_are_equal_up_to_rounding(n):
    rng = np.random.default_rng(n)
    distinct = rng.standard_normal((n, 16))
    distinct = (distinct / np.linalg.norm(distinct, axis=1)[:, None]).astype(np.float32)
    row_of = rng.permutation(np.repeat(np.arange(n), 3))
    noise = rng.standard_normal((3 * n, 16)).astype(np.float32) * 1e-7

    numbers = equal_rows(distinct[row_of] + noise)

    assert len(np.unique(numbers)) == n
    assert len(np.unique(np.stack([numbers, row_of]), axis=1).T) == n


# --- what it gives --------------------------------------------------------------------------------


def test_predictions_are_those_of_the_networks_written_out(predictors):
    embeddings, _, _ = planted()
    predictor = predictors[1]
    for seed, row in enumerate(predictor.places(embeddings[:20])):
        for x, place in zip(embeddings[:20], row, strict=True):
            units = (x - predictor.center) @ predictor.basis
            (first, bias), (last, end) = predictor.weights
            units = np.maximum(first[seed] @ units + bias[seed], 0)
            logits = last[seed] @ units + end[seed]
            assert place == max(predictor.active, key=lambda layer: logits[layer])


def test_layers_of_a_sweep_of_some_layers_are_given_by_number():
    embeddings, slope, _ = planted(n=80)
    layers = np.array([3, 4, 7, 10, 11, 20, 21, 30])
    predictor = trained(embeddings, slope, layers=layers)[1]
    places = predictor.places(embeddings)
    assert places.shape == (3, 80)
    np.testing.assert_array_equal(predictor.predict(embeddings), layers[places])
    np.testing.assert_array_equal(predictor.active_layers, layers[predictor.active])


def test_where_one_layer_is_always_best_it_is_predicted_for_all():
    embeddings, slope, _ = planted(n=40)
    slope[:, 3] += 10
    for predictor in trained(embeddings, slope).values():
        np.testing.assert_array_equal(predictor.places(embeddings), np.full((3, 40), 3))
        assert predictor.cv_gain == predictor.cv_gain_error == 0


def test_equal_embeddings_give_one_layer():
    embeddings, slope, _ = planted(n=40)
    same = np.broadcast_to(embeddings[:1], embeddings.shape)
    places = trained(same, slope)[1].places(same)
    assert (places == places[:, :1]).all()


def test_a_saved_predictor_comes_back(predictors, tmp_path):
    embeddings, _, _ = planted()
    predictors[2].save(tmp_path / "two.safetensors")
    again = LayerPredictor.load(tmp_path / "two.safetensors")
    np.testing.assert_array_equal(again.places(embeddings), predictors[2].places(embeddings))
    for field in dataclasses.fields(LayerPredictor):
        loaded, first = getattr(again, field.name), getattr(predictors[2], field.name)
        if field.name == "weights":
            assert len(loaded) == len(first)
        elif isinstance(first, np.ndarray):
            np.testing.assert_array_equal(loaded, first)
        else:
            assert loaded == first


def broken(path, how):
    """Break a saved predictor."""
    arrays = load_file(path)
    with safe_open(path, framework="numpy") as file:
        about = file.metadata()
    if how == "cut":
        path.write_bytes(path.read_bytes()[:-100])
        return
    if how == "text":
        path.write_text("not a predictor")
        return
    facts = json.loads(about["about"])
    if how == "format":
        about["format"] = "actcache layer predictor 2"
    elif how == "no text":
        about = {"by": "someone else"}
    elif how == "nested":
        about["about"] = "[" * 100_000
    elif how == "constant":
        facts["cv_value"] = float("nan")
    elif how == "setting":
        facts["settings"]["rates"] = ["fast"]
    elif how == "chosen":
        facts["chosen"]["depth"] = -1
    elif how == "not finite":
        arrays["0.weight"][0, 0, 0] = np.inf
    elif how == "shape":
        arrays["basis"] = arrays["basis"][:-1]
    elif how == "active":
        arrays["active"] = arrays["active"] + 100
    elif how == "negative":
        arrays["active"][0] = -1
    elif how == "none":
        arrays["active"] = arrays["active"][:0]
    elif how == "missing":
        del arrays["1.bias"]
    elif how == "float64":
        arrays["center"] = arrays["center"].astype(np.float64)
    elif how == "weight":
        arrays["0.weight"][0, 0, 0] += 1
    if how in ("constant", "setting", "chosen"):
        about["about"] = json.dumps(facts)
    save_file({k: np.ascontiguousarray(v) for k, v in arrays.items()}, path, metadata=about)


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("cut", "SafetensorError"),
        ("text", "SafetensorError"),
        ("format", "its format is 'actcache layer predictor 2'"),
        ("no text", "format"),
        ("nested", "RecursionError"),
        ("constant", "a number is NaN"),
        ("setting", "Type(Check)?Error"),
        ("chosen", "the chosen -1 is not on the grid's"),
        ("not finite", "'0.weight' holds a value that is not finite"),
        ("shape", r"'basis' has 23 in \[e p\], expected e 24"),
        ("active", "expected places below 8"),
        ("negative", "expected places below 8"),
        ("none", "expected places below 8"),
        ("missing", "1.bias"),
        ("float64", r"'center' is float64 \[24\], expected float32 \[e\]"),
        ("weight", "its content does not match its checksum"),
    ],
)
def test_a_damaged_file_is_refused_in_one_line(predictors, tmp_path, how, message):
    path = tmp_path / "one.safetensors"
    predictors[1].save(path)
    broken(path, how)
    with pytest.raises(
        FormatError, match=f"{message}.*Train it again, or pass a file that"
    ) as error:
        LayerPredictor.load(path)
    assert "\n" not in str(error.value)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(StoreNotFoundError, match=r"no layer predictor at '.*nowhere"):
        LayerPredictor.load(tmp_path / "nowhere")


# --- what is refused ------------------------------------------------------------------------------


def test_a_slope_or_embedding_that_is_not_finite_is_named_by_sample():
    embeddings, slope, _ = planted(n=40)
    spoilt = slope.copy()
    spoilt[7, 2] = np.nan
    with pytest.raises(NotFiniteError, match="a slope of sample 7 is not finite"):
        trained(embeddings, spoilt)
    embeddings[5, 0] = np.nan
    with pytest.raises(NotFiniteError, match="the embedding of sample 5 is not finite"):
        trained(embeddings, slope)


def test_embeddings_that_are_not_of_unit_norm_are_refused(predictors):
    embeddings, slope, _ = planted(n=40)
    with pytest.raises(MismatchError, match=r"sample 0 has norm 3.*Divide each embedding"):
        trained(3 * embeddings, slope)
    with pytest.raises(MismatchError, match=r"sample 0 has norm 3.*Divide each embedding"):
        predictors[1].places(3 * embeddings)


def test_embeddings_of_another_encoder_are_refused(predictors):
    other = np.eye(3, dtype=np.float32)
    with pytest.raises(
        MismatchError, match=r"have length 3, .* on 24. Embed with the same encoder"
    ):
        predictors[1].places(other)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"n_train": 0}, "the train split has no sample"),
        ({"groups": ["same"] * 40}, "5 folds of 1 distinct train prompts"),
        ({"groups": ["a"] * 39}, "39 prompts came with 40 embeddings"),
        ({"letters": ["A"]}, "1 letters came with 40 embeddings"),
        ({"layers": [0, 1, 2]}, "3 layers came with slopes at 8"),
        ({"asked": dataclasses.replace(SMALL, top=(9,))}, "top is 9, expected 1 to 8"),
    ],
)
def test_what_does_not_fit_together_is_refused(changed, message):
    with pytest.raises(MismatchError, match=message):
        trained(*planted(n=40)[:2], **changed)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("rates", ()),
        ("widths", (0,)),
        ("decays", (-1.0,)),
        ("depths", (1, 1)),
        ("epochs", (20, 10)),
        ("batch", 0),
        ("folds", 1),
        ("seeds", 0),
        ("components", 0),
    ],
)
def test_settings_that_cannot_be_used_are_refused(name, value):
    with pytest.raises(MismatchError, match=rf"^{name} (are|is) .*expected .*\. Pass "):
        W2SSettings(**{name: value})


def test_predictors_are_loaded_without_torch():
    code = "import sys; import actcache.analysis.predict.w2s.layer_predictor; print('torch' in sys.modules)"
    assert run_code(code).stdout == "False\n"
