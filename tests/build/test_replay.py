"""Running a store's rows again: the same tokens, and no other model."""

from dataclasses import replace

import pytest
import torch

from actcache.build.plan import plan_build
from actcache.build.replay import (
    load_store_model,
    rendered_pairs,
    rendered_rows,
    require_store_model,
)
from actcache.build.run import run_build
from actcache.errors import MismatchError

pytestmark = pytest.mark.model


def test_rows_are_read_back_as_the_build_rendered_them(samples, config, tmp_path):
    marked = [replace(sample, span=(0, 2)) for sample in samples[:4]]
    plan = plan_build(marked, replace(config, sites=("attention",)))
    store = run_build(plan, tmp_path / "s.zarr")

    assert rendered_rows(store) == list(plan.rendered)
    assert all(row.span is not None for row in plan.rendered)


def test_labelled_prompts_are_no_pairs(samples, config, tmp_path):
    labelled = [
        replace(sample, positive=None, negative=None, label=f"l{i % 2}", letter="")
        for i, sample in enumerate(samples[:4])
    ]
    store = run_build(plan_build(labelled, config), tmp_path / "s.zarr")

    with pytest.raises(MismatchError, match="prompts without completions"):
        rendered_pairs(store)


def test_a_model_with_other_weights_is_refused(samples, config, tmp_path):
    store = run_build(plan_build(samples[:4], config), tmp_path / "s.zarr")
    model = load_store_model(store)
    require_store_model(store, model)
    with torch.no_grad():
        next(model.hf.parameters())[0, 0] += 1
    model.__dict__.pop("digest", None)

    with pytest.raises(MismatchError, match="'weights_sha256'"):
        require_store_model(store, model)
