"""Plans: what is refused, what a build will take on disk, and what users are told."""

from dataclasses import replace

import pytest

from actcache import demo
from actcache.build.config import BuildConfig
from actcache.build.plan import plan_build
from actcache.build.run import run_build
from actcache.data.formats import read_samples
from actcache.errors import RenderError

pytestmark = pytest.mark.model


def test_no_row_that_fits_is_an_error(samples, config):
    long = replace(samples[0], id="long", prompt="x" * 500)

    with pytest.raises(RenderError, match="a model with a longer context"):
        plan_build([long], config)


def test_the_planned_bytes_are_those_of_the_store(samples, config, tmp_path):
    sites = ("resid_post", "embed", "heads")
    plan = plan_build(samples[:5], replace(config, sites=sites, store_dtype="float16"))
    store = run_build(plan, tmp_path / "s.zarr")

    assert plan.n_bytes == sum(store.array(name)[:].size * 2 for name in store.arrays)


def test_good_rows_need_no_note(samples, config):
    assert plan_build(samples, config).notes == []


def test_a_behavior_with_leaky_splits_of_its_own_is_warned_about(samples, config):
    prompts = {"a?": "train", "A?": "test", "b?": "test", "c?": "validation"}
    rows = [
        replace(samples[i], id=f"own/{i}", behavior="own", prompt=prompt, split=split)
        for i, (prompt, split) in enumerate(prompts.items())
    ]

    [warning] = plan_build(rows, config).notes

    assert warning.startswith(
        "warning: 'own' has splits of its own, and 1 of its 2 test prompts are also in train."
    )


def test_concepts_that_the_tokenizer_does_not_know_are_warned_about():
    rows = [
        {"prompt": f"Think of {word}.", "span": word, "label": label}
        for label in ("with", "without")
        for word in ("spiders", "heights", "room")
    ]
    config = BuildConfig(
        model=str(demo.model_path()), positions=("prompt",), sites=("resid_post", "attention")
    )

    notes = plan_build(read_samples(rows), config).notes

    [warning] = [note for note in notes if note.startswith("warning")]
    assert "4 of 6 spans hold words that the tokenizer does not know" in warning
