"""The stage on written stores: blind layers, the published design, classes of variants, bad input."""

import numpy as np
import pytest

from actcache.analysis.concepts.rows import design_of, rows_of_concept
from actcache.analysis.concepts.stage import check_concepts, fit_concepts
from actcache.analysis.config import AnalyzeConfig
from actcache.analysis.pipeline import analyze
from actcache.cli.terminal.show import show_or_print
from actcache.data.concepts import POOLS
from actcache.errors import MismatchError, NotFiniteError
from tests.analysis.directions.test_token_choice import write_store

LABELS = ("with", "without")
POSITIONS = ("template_-1", "template_-2")
SPLITS = ["train"] * 16 + ["validation"] * 8 + ["test"] * 8
L, D, H = 3, 6, 2
PROVENANCE = {"model": {"name": "m", "weights_sha256": "ab" * 32}}


def concept_store(
    path, *, concepts=("bees",), change=None, columns=None, masses=None, positions=POSITIONS
):
    """Rows of both labels; layer 1 sees nothing, the others attend from the second-last token."""
    rng = np.random.default_rng(0)
    n_side = len(SPLITS)
    behavior = [name for name in concepts for _ in range(2 * n_side)]
    label = [name for _ in concepts for name in LABELS for _ in range(n_side)]
    n = len(behavior)
    positive = np.array(label) == "with"
    shift = np.zeros((n, L, D))
    shift[:, :, 0] = 3 * positive[:, None]
    arrays = {}
    for position in positions:
        values = rng.normal(0, 1, (n, L, D)) + shift * (position == "template_-2")
        arrays[f"resid_post/{position}"] = values.astype(np.float32)
    if masses is None:
        masses = {p: np.full((n, L, H), 0.1, np.float32) for p in POSITIONS}
        masses["template_-2"] = rng.uniform(0.4, 0.9, (n, L, H)).astype(np.float32)
    for position, values in masses.items():
        seen = values * positive[:, None, None]
        seen[:, 1] = 0
        arrays[f"attention/{position}"] = seen.astype(np.float32)
    if change:
        change(arrays)
    written = {
        "id": [str(i) for i in range(n)],
        "behavior": behavior,
        "label": label,
        "split": SPLITS * (2 * len(concepts)),
        "variant": ["base"] * n,
        "prompt": [f"{'You fear it. ' if p else ''}{i % n_side}" for i, p in enumerate(positive)],
        "span": np.array([[0, 3] if p else [0, 0] for p in positive]),
        **(columns or {}),
    }
    return write_store(path, arrays, columns=written, provenance=PROVENANCE)


def fit(store, **settings):
    config = AnalyzeConfig(**{"draws": 50, **settings})
    return fit_concepts(store, labels=LABELS, config=config)


def test_each_of_several_concepts_has_what_it_has_alone(tmp_path):
    store = concept_store(tmp_path / "s.zarr", concepts=("bees", "snow"))
    config = AnalyzeConfig(draws=20)
    summary, tensors = fit_concepts(store, labels=LABELS, config=config)

    for name in ("bees", "snow"):
        alone, arrays = fit_concepts(store, labels=LABELS, config=config, names=[name])
        assert alone.concepts[name] == summary.concepts[name]
        for key, values in arrays.items():
            np.testing.assert_array_equal(tensors[key], values)


def test_a_blind_layer_takes_the_last_token_has_no_soft_labels_and_is_listed(tmp_path):
    store = concept_store(tmp_path / "s.zarr")

    summary, tensors = fit(store, methods=("mean", "ridge"))

    scores = summary.concepts["bees"]
    assert scores.tokens == ("template_-2", "template_-1", "template_-2")
    assert scores.blind == (1,)
    hard, soft = (tensors[f"bees/mean-{kind}-attended"] for kind in ("hard", "soft"))
    np.testing.assert_array_equal(soft[1], hard[1])
    assert (soft[0] != hard[0]).any()
    np.testing.assert_array_equal(hard[0], tensors["bees/mean-hard-template_-2"][0])
    np.testing.assert_array_equal(hard[1], tensors["bees/mean-hard-template_-1"][1])
    assert hard[0, 0] > 0.9  # the shift
    results = analyze(store, tmp_path / "out", stages=("concepts",), draws=50)
    assert "bees: no token sees the span in layers 1" in (results.path / "tables.md").read_text()


def test_the_terminal_shows_the_table_and_that_auc_is_no_verdict(tmp_path, capsys):
    store = concept_store(tmp_path / "s.zarr")
    results = analyze(store, tmp_path / "out", stages=("concepts",), draws=50)

    show_or_print(results.summary, as_json=False, out=results.path)

    shown = capsys.readouterr().out
    assert "bees" in shown
    assert "template_-2" in shown
    assert "A verdict needs a steering slope" in " ".join(shown.split())


def test_controls_are_signed_and_the_same_for_one_seed(tmp_path):
    store = concept_store(tmp_path / "s.zarr")
    first, again, other = (fit(store, seed=seed, shuffles=25)[0] for seed in (0, 0, 1))
    controls = first.concepts["bees"].controls
    assert controls == again.concepts["bees"].controls != other.concepts["bees"].controls
    assert controls.draws == 25
    assert all(interval.low < 0.5 < interval.high for interval in controls.shuffled)


def test_the_published_design_shows_the_pools_alone(tmp_path):
    def shift_pools(arrays):
        for name, values in arrays.items():
            if name.startswith("resid_post"):
                half = len(values) // 2
                values[half : half + len(SPLITS), :, 1] += 5  # the first pool, without a prefix

    store = concept_store(tmp_path / "s.zarr", concepts=("bees", POOLS), change=shift_pools)

    summary, _ = fit(store)

    assert (summary.design, list(summary.concepts)) == ("published", ["bees"])
    pools = summary.concepts["bees"].pools
    assert pools is not None
    assert all(auc.value == 1 for auc in pools.auc)
    results = analyze(store, tmp_path / "out", stages=("concepts",), draws=50)
    page = (results.path / "tables.md").read_text()
    assert "two pools of statements" in page
    assert "pools alone" in page


def test_the_design_is_told_by_the_rows(tmp_path):
    store = concept_store(tmp_path / "s.zarr")
    assert design_of(store, LABELS) == "same"
    texts = {"prompt": [f"text {i}" for i in range(store.n)]}
    other = concept_store(tmp_path / "o.zarr", columns=texts)
    assert design_of(other, LABELS) == "other"


def test_persona_variants_of_pairs_are_classes_too(tmp_path):
    n = 2 * len(SPLITS)
    variants = {"label": [""] * n, "variant": ["user_pos"] * (n // 2) + ["base"] * (n // 2)}
    store = concept_store(tmp_path / "s.zarr", columns=variants)
    rows = rows_of_concept(store, "bees", None)
    assert rows.positive.tolist() == [True] * (n // 2) + [False] * (n // 2)
    negated = {**variants, "variant": ["sys_pos"] * (n // 2) + ["sys_neg"] * (n // 2)}
    store = concept_store(tmp_path / "n.zarr", columns=negated)
    assert rows_of_concept(store, "bees", None).positive.sum() == n // 2


def few(n):
    return {"split": (["train"] * n + ["test"] * (len(SPLITS) - n)) * 2}


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        (few(7), "'bees' has 7 rows with and 7 rows without in the split train, expected 8"),
        ({"label": ["with"] * 2 * len(SPLITS)}, "0 rows without in the split train"),
        (
            {"split": [*SPLITS, *["train"] * 16, *["validation"] * 16]},
            "8 rows with and 0 rows without in the split test",
        ),
    ],
)
def test_too_few_rows_are_refused_by_the_concept(tmp_path, columns, message):
    store = concept_store(tmp_path / "s.zarr", columns=columns)
    with pytest.raises(MismatchError, match=message):
        check_concepts(store, LABELS)


def test_masses_without_residuals_say_what_to_build(tmp_path):
    store = concept_store(tmp_path / "s.zarr", positions=("template_-1",))
    with pytest.raises(
        MismatchError, match=r"template_-2 and no residuals.*--sites resid_post,att"
    ):
        check_concepts(store, LABELS)


def test_residuals_that_are_not_finite_are_named(tmp_path):
    def break_one(arrays):
        arrays["resid_post/template_-1"][3, 2, 1] = np.nan

    with pytest.raises(NotFiniteError, match="is nan in coordinate 1"):
        fit(concept_store(tmp_path / "s.zarr", change=break_one))


def test_a_store_without_masses_is_left_alone_by_default_and_refused_by_name(tmp_path):
    def without(arrays):
        for name in [name for name in arrays if name.startswith("attention")]:
            del arrays[name]

    store = concept_store(tmp_path / "s.zarr", change=without)
    analyze(store, tmp_path / "out", draws=50)
    assert not (tmp_path / "out" / "concepts.json").exists()
    with pytest.raises(MismatchError, match=r"expected the site attention\. Build it with"):
        analyze(store, tmp_path / "other", stages=("concepts",))
