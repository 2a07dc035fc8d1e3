"""Loading: several devices, weights that do not fit, code that comes with a checkpoint."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest

from actcache.analysis.sweep import run as sweep
from actcache.build.plan import plan_build
from actcache.build.run import run_build
from actcache.engine.model import load_config, load_model
from actcache.errors import ModelError

pytestmark = pytest.mark.model


def test_a_device_map_gives_the_same_store_and_sweep(samples, config, store, tmp_path):
    from accelerate import dispatch_model  # type: ignore[import-untyped]  # ships no types

    mapped = load_model(config.model, device_map={"": "cpu"})
    # Each module gets the hooks that would move its arguments to its device, were there several.
    places = dict.fromkeys(
        ["lm_head", "model.embed_tokens", "model.norm", "model.rotary_emb"]
        + [f"model.layers.{layer}" for layer in range(4)],
        "cpu",
    )
    dispatch_model(mapped.hf, places, main_device="cpu", force_hooks=True)
    assert hasattr(mapped.anatomy.blocks[0], "_hf_hook")
    plan = plan_build(samples, replace(config, sites=("resid_post", "heads")))
    again = run_build(plan, tmp_path / "s.zarr", model=mapped)

    for name in again.arrays:
        np.testing.assert_array_equal(again.array(name)[:], store.array(name)[:])
    values = np.random.default_rng(0).normal(size=(1, 4, 32)).astype(np.float32)
    mapped_scores, plain_scores = (
        sweep.run_sweep(
            store,
            {"random": values[0]},
            multipliers=[-1.0, 0.0, 1.0],
            out=tmp_path / f"{i}.zarr",
            model=model,
            score="logprob",
        ).propensity_of("random")
        for i, model in enumerate((mapped, load_model(config.model)))
    )
    np.testing.assert_array_equal(mapped_scores, plain_scores)


def test_weights_that_do_not_fit_the_devices_are_refused(calm, tmp_path):
    places = {"model": "cpu", "lm_head": "disk"}

    with pytest.raises(ModelError, match="does not fit into the devices' memory"):
        load_model(str(calm / "model"), device_map=places)


CODE = """
from transformers import LlamaConfig
class TinyConfig(LlamaConfig):
    model_type = "llama"
"""


def test_a_checkpoints_own_code_runs_only_on_request(calm, tmp_path):
    model = tmp_path / "model"
    shutil.copytree(calm / "model", model)
    config = json.loads((model / "config.json").read_text())
    config |= {"model_type": "tiny-of-its-own", "auto_map": {"AutoConfig": "code.TinyConfig"}}
    (model / "config.json").write_text(json.dumps(config))
    (model / "code.py").write_text(CODE)

    with pytest.raises(ModelError, match="pass --trust-remote-code"):
        load_config(str(model))
    assert load_config(str(model), trust_remote_code=True).hidden_size == 32
