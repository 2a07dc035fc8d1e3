"""Pictures: drawn as files of a known width, with what they must name, and no trace left behind."""

from dataclasses import replace

import matplotlib as mpl
import numpy as np
import pytest
from matplotlib.image import imread

from actcache.analysis.directions.discriminative import layer_scores, project
from actcache.analysis.report.layer_plots import plot_layers
from actcache.analysis.report.plots import plot_grid, plot_steerability
from actcache.analysis.sweep.steerability import summarize
from actcache.errors import MismatchError
from tests.support.processes import run_code

GRID = np.arange(-1.5, 1.6, 0.5)


@pytest.fixture(scope="module")
def six_layers():
    rng = np.random.default_rng(0)
    train = np.arange(40) < 15
    propensity = rng.normal(size=(40, 6, 1)) * GRID + rng.normal(size=(40, 6, 7))
    return summarize(
        propensity, GRID, train=train, test=~train, rng=rng, control=propensity[None], draws=20
    ).scores


@pytest.fixture(scope="module")
def scores():
    rng = np.random.default_rng(1)
    labels = np.arange(60) % 2
    resid = rng.normal(size=(60, 12, 5)) * np.exp(np.arange(12))[:, None]
    resid[:, 5:, 0] *= 2
    resid[:, 5:, 0] += (20 * (2 * labels - 1))[:, None] * np.exp(np.arange(5, 12))
    projections = project(
        [resid.astype(np.float32)], np.eye(5, dtype=np.float32)[np.zeros(12, int)]
    )
    return layer_scores(projections, labels, rng=rng, draws=20)


def text(path):
    """The words of a picture: Matplotlib leaves them as comments in an SVG."""
    return path.read_text(encoding="utf-8")


def assert_picture(path):
    image = imread(path)
    assert image.shape[1] == 1200
    assert image[..., :3].std() > 0.05


@pytest.mark.parametrize("n", [1, 4, 15])
def test_steerability_by_layer_names_every_behavior_the_fixed_layer_and_the_unit(
    six_layers, tmp_path, n
):
    behaviors = {f"behavior {i}": six_layers for i in range(n)}
    plot_steerability(tmp_path / "a.png", behaviors, control=six_layers.control)
    plot_steerability(tmp_path / "a.svg", behaviors, control=six_layers.control)

    assert_picture(tmp_path / "a.png")
    words = text(tmp_path / "a.svg")
    for phrase in (*behaviors, "fixed layer", "random directions", "logits per unit multiplier"):
        assert phrase in words


@pytest.mark.parametrize("n", [1, 4, 5, 13])
def test_the_grid_has_one_panel_a_behavior_with_the_largest_change(tmp_path, n):
    rng = np.random.default_rng(2)
    propensity = {f"behavior {i}": rng.normal(size=(6, 7)) + 100 for i in range(n)}
    change = {name: np.abs(values - values[:, [3]]).max() for name, values in propensity.items()}
    fixed = dict.fromkeys(propensity, 2)
    plot_grid(tmp_path / "a.png", propensity, GRID, fixed_layers=fixed)
    plot_grid(tmp_path / "a.svg", propensity, GRID, fixed_layers=fixed)

    assert_picture(tmp_path / "a.png")
    words = text(tmp_path / "a.svg")
    for name, largest in change.items():
        assert f"<!-- {name} (±\u00a0{largest:.2g}) -->" in words
    for phrase in ("multiplier", "layer that is steered", "logits", "from multiplier 0"):
        assert phrase in words


def test_zero_is_white_even_in_a_grid_of_zeros_without_multiplier_zero(tmp_path):
    for name in ("a.png", "a.svg"):
        plot_grid(tmp_path / name, {"x": np.zeros((3, 2))}, np.array([-1.0, 1.0]))
    middle = imread(tmp_path / "a.png")[250:400, 300:700, :3]
    np.testing.assert_allclose(middle, 0.97, atol=0.03)
    assert "from the mean over multipliers" in text(tmp_path / "a.svg")


def test_layers_carry_their_numbers_where_some_are_steered(tmp_path, six_layers):
    layers = [17, 19, 23, 29, 31, 37]
    behaviors = {"tidy": replace(six_layers, fixed_layer=23)}
    plot_steerability(tmp_path / "s.svg", behaviors, layers=layers)
    plot_grid(tmp_path / "g.svg", {"tidy": np.ones((6, 7))}, GRID, layers=layers)
    for name in ("s.svg", "g.svg"):
        assert "<!-- 23 -->" in text(tmp_path / name)
        assert "<!-- 2 -->" not in text(tmp_path / name)


def test_what_prompts_start_from_does_not_set_the_colors(tmp_path):
    change = np.random.default_rng(3).normal(size=(3, 7))
    for start in (0, 1000):
        plot_grid(tmp_path / f"{start}.png", {"x": change + start}, GRID)
    np.testing.assert_array_equal(imread(tmp_path / "0.png"), imread(tmp_path / "1000.png"))


@pytest.mark.parametrize("form", ["svg", "pdf", "png"])
def test_the_same_numbers_give_the_same_bytes(six_layers, tmp_path, form):
    paths = [tmp_path / f"{name}.{form}" for name in "ab"]
    for path in paths:
        plot_steerability(path, {"x": six_layers, "y": six_layers}, control={"x": [six_layers]})
    assert paths[0].read_bytes() == paths[1].read_bytes()


def test_layers_names_both_classes_and_shades_discriminative_layers(scores, tmp_path):
    plot_layers(tmp_path / "a.png", scores, positive="harmful", negative="harmless")
    plot_layers(tmp_path / "a.svg", scores, positive="harmful", negative="harmless")

    assert scores.discriminative[5:].all()
    assert_picture(tmp_path / "a.png")
    words = text(tmp_path / "a.svg")
    for phrase in ("harmful", "harmless", "discriminative layer", "AUC"):
        assert phrase in words


@pytest.mark.parametrize("n", [2, 4, 7])
def test_the_classes_of_several_behaviors_have_a_panel_each(scores, tmp_path, n):
    behaviors = {f"behavior {i}": scores for i in range(n)}
    for form in ("png", "svg"):
        plot_layers(tmp_path / f"a.{form}", behaviors, positive="harmful", negative="harmless")

    assert_picture(tmp_path / "a.png")
    words = text(tmp_path / "a.svg")
    for i in range(n):
        assert words.count(f"<!-- behavior {i} (layer") == 1
    for phrase in ("<!-- harmful -->", "<!-- harmless -->", "<!-- discriminative layer -->"):
        assert words.count(phrase) == 1
    assert words.count("<!-- layer that is read -->") == min(n, 2 if n == 4 else 3)


def test_one_behavior_by_name_is_drawn_as_one_without(scores, tmp_path):
    plot_layers(tmp_path / "a.png", scores)
    plot_layers(tmp_path / "b.png", {"tidy": scores})
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


def test_nothing_to_draw_says_what_to_do(tmp_path):
    with pytest.raises(MismatchError, match="Pass some"):
        plot_layers(tmp_path / "a.png", {})
    with pytest.raises(MismatchError, match="Pass some"):
        plot_steerability(tmp_path / "a.png", {})
    with pytest.raises(MismatchError, match="Pass some"):
        plot_grid(tmp_path / "a.png", {}, GRID)


def test_a_panel_that_does_not_fit_the_grid_says_what_to_do_where_no_type_checker_runs():
    code = """
import numpy, actcache.analysis as a
from actcache.errors import MismatchError
try:
    a.plot_grid("/dev/null", {"x": numpy.ones((3, 2))}, numpy.arange(3.0))
except MismatchError as error:
    assert "Pass [layer, multiplier]" in str(error)
else:
    raise AssertionError
"""
    run_code(code)


def test_drawing_leaves_the_settings_alone(six_layers, tmp_path):
    before = dict(mpl.rcParams)
    plot_steerability(tmp_path / "a.png", {"x": six_layers})
    assert dict(mpl.rcParams) == before


def test_the_analyses_load_matplotlib_only_to_draw_and_pyplot_never():
    code = """
import sys, numpy, actcache.analysis as a
assert "matplotlib" not in sys.modules, "at import"
a.plot_grid(sys.argv[1], {"x": numpy.ones((2, 2))}, numpy.array([0.0, 1.0]))
assert "matplotlib.figure" in sys.modules
assert "matplotlib.pyplot" not in sys.modules, "pyplot"
assert "torch" not in sys.modules, "torch"
"""
    run_code(code, "/dev/null")
