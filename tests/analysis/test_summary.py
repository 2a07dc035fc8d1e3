"""The typed summary and the results folder: equal after a round trip, refused where damaged."""

import json

import numpy as np
import pytest

from actcache.analysis import Interval, open_results
from actcache.analysis.config import AnalyzeConfig
from actcache.analysis.directions.discriminative import LayerScores
from actcache.analysis.report.pages import html_page, markdown_page, short_tables, warnings
from actcache.analysis.report.verdicts import verdicts
from actcache.analysis.summary import (
    SelfCheck,
    StoreSummary,
    Summary,
    SweepSummary,
    VectorSummary,
    read_store,
)
from actcache.analysis.sweep.steerability import summarize
from actcache.cli.main import main
from actcache.errors import FormatError, MismatchError, StoreNotFoundError

GRID = np.arange(-1.5, 1.6, 0.5)


def layer_scores():
    ones = np.ones(3)
    return LayerScores(
        n_positive=4,
        n_negative=5,
        common_layer=1,
        mean_cosine=ones / 3,
        normalized=False,
        class_mean=np.stack([ones, -ones]),
        interval=np.ones((2, 3, 2)),
        discriminative=ones > 0,
        discriminative_share=ones,
        fisher=ones,
        auc=ones,
    )


@pytest.fixture(scope="module")
def summary():
    rng = np.random.default_rng(0)
    letters = np.array(["A", "B"] * 40)
    slope = np.where(letters == "A", 1.0, -1.0)[:, None] + 0.1 * rng.normal(size=(80, 3))
    propensity = slope[:, :, None] * GRID
    train = np.arange(80) < 40
    scores = summarize(
        propensity,
        GRID,
        train=train,
        test=~train,
        rng=rng,
        letters=letters,
        control=propensity[None] / 9,
        layers=[3, 5, 7],
        draws=20,
    ).scores
    planted = Summary(
        store=StoreSummary(
            path="a<b>.zarr",
            n=80,
            n_layers=8,
            d_model=4,
            provenance={"model": {"name": "m"}},
            certificate=None,
        ),
        config=AnalyzeConfig(layers=(3, 5, 7)),
        labels=("yes", "no"),
        vectors={"<b>tidy": VectorSummary(n_positive=20, n_negative=20, norm=(1.0, 2.0))},
        layers={"yes-no": layer_scores()},
        sweep=SweepSummary(
            layers=(3, 5, 7),
            multipliers=tuple(GRID.tolist()),
            unit="logits",
            self_check=SelfCheck(naive_error=1e-7, noise_floor=0.0),
            behaviors={"<b>tidy": scores},
            mean_propensity={"<b>tidy": tuple(map(tuple, propensity.mean(0).tolist()))},
        ),
    )
    return Summary(**{**vars(planted), "verdicts": verdicts(planted)})


def test_a_summary_is_read_as_it_was_written(summary, tmp_path):
    summary.write(tmp_path / "summary.json")
    read = Summary.read(tmp_path / "summary.json")
    assert read == summary
    assert isinstance(read.behaviors["<b>tidy"].fixed.slope, Interval)
    assert read.behaviors["<b>tidy"].fixed_layer in (3, 5, 7)
    assert read_store(tmp_path / "summary.json") == summary.store
    assert read != Summary(store=summary.store, config=summary.config)


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: text[: len(text) // 2],
        lambda text: text.replace('"n": 80', '"n": "80"'),
        lambda text: text.replace('"format": 3', '"format": 4'),
        lambda text: text.replace('"slope_error": 0.0', '"slope_error": NaN'),
        lambda text: text.replace('"draws": 1000', '"draws": 0'),
        lambda text: text.replace('"seeds"', '"seedlings"'),
        lambda text: "[" * 100_000,
        lambda text: "[1]",
        lambda text: "{}",
        lambda text: "\x00\ud800",
    ],
)
def test_a_damaged_or_foreign_file_is_refused_in_one_line(summary, tmp_path, damage, capsys):
    path = tmp_path / "summary.json"
    summary.write(path)
    damaged = damage(path.read_text(encoding="utf-8"))
    path.write_bytes(damaged.encode("utf-8", "surrogatepass"))
    with pytest.raises(FormatError, match="expected its summary") as caught:
        Summary.read(path)
    assert "\n" not in str(caught.value)
    assert main(["info", str(tmp_path)]) == 1
    assert capsys.readouterr().err.count("\n") == 1


def test_a_summary_of_an_earlier_version_says_what_to_do(summary, tmp_path):
    path = tmp_path / "summary.json"
    summary.write(path)
    document = json.loads(path.read_text(encoding="utf-8"))
    del document["format"]
    path.write_text(json.dumps(document), encoding="utf-8")

    with pytest.raises(MismatchError, match=r"earlier version.* Run analyze in this folder again"):
        open_results(tmp_path).summary  # noqa: B018


def test_a_folder_without_results_says_how_to_make_some(tmp_path):
    with pytest.raises(StoreNotFoundError, match=r"actcache analyze STORE\.zarr"):
        open_results(tmp_path)


def test_every_page_carries_the_verdicts_and_a_notebook_gets_escaped_text(summary):
    words = [verdict.word for verdict in summary.verdicts]
    assert words == ["letter, not behavior", "gain shown"]
    page, markdown = html_page(summary), markdown_page(summary)
    for verdict in summary.verdicts:
        assert verdict.word in page
        assert verdict.sentence in markdown
    assert "<b>tidy" not in page
    assert "&lt;b&gt;tidy" in page
    assert "a&lt;b&gt;.zarr" in page
    assert [table.columns[-1] for table in short_tables(summary)] == ["AUC", "verdict"]
    [warning] = warnings(summary)
    assert "moves the letter, not the behavior: <b>tidy" in warning


def test_the_summary_in_json_names_every_part(summary, tmp_path):
    summary.write(tmp_path / "summary.json")
    document = json.loads((tmp_path / "summary.json").read_text(encoding="utf-8"))
    behavior = document["sweep"]["behaviors"]["<b>tidy"]
    assert {"fixed", "random", "oracle", "cross_fitted"} <= behavior.keys()
    assert behavior["fixed"]["slope"].keys() == {"value", "low", "high"}
    assert document["predictors"] is None
