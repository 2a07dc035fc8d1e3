"""Which model, which engine, which device: what is refused, what is checked before a long run."""

import json
import shutil
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from actcache.analysis.sweep import run as sweep
from actcache.build.config import BuildConfig
from actcache.build.plan import plan_build
from actcache.build.run import run_build
from actcache.cli.main import main
from actcache.data.formats import read_samples
from actcache.engine.capture import capture
from actcache.engine.model import adopt_model, load_config, load_model
from actcache.engine.self_check import check_capture
from actcache.engine.steered_scores import score_grid
from actcache.errors import ModelError
from actcache.store.store import open_store
from tests.engine.test_sites import rows_of_three_lengths
from tests.support.tiny import make, save

pytestmark = pytest.mark.model


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A tiny model with a chat template, and six pairs."""
    folder = tmp_path_factory.mktemp("engine")
    save(folder / "model")
    rows = [
        {"prompt": "abcdef"[: i + 1] + "?", "positive": "(A)", "negative": "(B)"} for i in range(6)
    ]
    text = "\n".join(json.dumps(row) for row in rows)
    (folder / "calm.jsonl").write_text(text, encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def samples(folder):
    return read_samples([folder / "calm.jsonl"])


@pytest.fixture(scope="module")
def config(folder):
    return BuildConfig(
        model=str(folder / "model"),
        sites=("resid_post", "resid_mid", "attn_out", "mlp_out", "heads", "embed"),
        positions=("prompt", "positive", "mean", "template:2"),
    )


@pytest.fixture(scope="module")
def store(samples, config, tmp_path_factory):
    return run_build(plan_build(samples, config), tmp_path_factory.mktemp("built") / "s.zarr")


def test_a_store_holds_each_site_at_each_position(store):
    assert store.positions == ["prompt", "positive", "mean", "template_-1", "template_-2"]
    assert store.resid("mean", site="heads").shape == (6, 4, 32)
    assert store.resid("template_-2", site="embed").shape == (6, 1, 32)
    last = store.resid("template_-1")[:]
    np.testing.assert_array_equal(last, store.resid("prompt")[:])
    # What the block adds up to, read from disk; fp32 rounding.
    middle = store.resid("positive", site="resid_mid")[:]
    whole = middle + store.resid("positive", site="mlp_out")[:]
    np.testing.assert_allclose(whole, store.resid("positive")[:], rtol=1e-4, atol=1e-5)


def test_the_check_before_the_build_is_recorded(store):
    check = store.certificate["self_check"]

    assert check["bound"] == 1e-3
    assert 0 < check["largest_relative_error"] < 1e-5
    for site in store.sites:
        assert store.certificate["sites"][site] < 1e-5


def test_the_engine_of_transformer_lens_gives_the_same_store(
    folder, samples, config, store, tmp_path
):
    status = main(
        [
            *("build", str(folder / "calm.jsonl"), "-o", str(tmp_path / "s.zarr"), "--json"),
            *("--model", config.model, "--engine", "transformer-lens", "--sites"),
            *(",".join(config.sites), "--positions", ",".join(config.positions)),
        ]
    )

    assert status == 0
    slow = open_store(tmp_path / "s.zarr")
    assert slow.config["engine"] == "transformer-lens"
    assert slow.provenance["model"]["weights_sha256"] == store.provenance["model"]["weights_sha256"]
    for name in store.arrays:
        # fp32; a bridge runs eager attention and no padding.
        np.testing.assert_allclose(slow.array(name)[:], store.array(name)[:], rtol=1e-4, atol=1e-5)


def test_a_capture_that_is_wrong_stops_the_build_before_it_begins(samples, config, tmp_path):
    def wrong(*args, **settings):
        found = capture(*args, **settings)
        found["resid_post"][:, 2] *= 1.01
        return found

    with pytest.raises(ModelError, match=r"off by 0.01 .* expected at most 0.001"):
        run_build(plan_build(samples, config), tmp_path / "s.zarr", read=wrong)
    assert list(tmp_path.iterdir()) == []


def test_a_sweep_that_is_wrong_stops_before_it_begins(store, config, tmp_path, monkeypatch):
    def wrong(*args, **settings):
        return score_grid(*args, **settings) * 1.01

    monkeypatch.setattr(sweep, "score_grid", wrong)
    values = np.random.default_rng(0).normal(size=(1, 4, 32)).astype(np.float32)

    with pytest.raises(ModelError, match=r"a steered cell is off by .* from two full passes"):
        sweep.run_sweep(
            store,
            {"random": values[0]},
            multipliers=[-1.0, 4.0],
            out=tmp_path / "sweep.zarr",
            model=lambda: load_model(config.model),
        )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_check_allows_the_rounding_of_half_precision(dtype):
    model = adopt_model(make("gemma2", dtype=dtype), name="half")

    check = check_capture(
        model,
        rows_of_three_lengths(),
        read=capture,
        positions=["prompt", "fork", "positive", "negative"],
        sites=["resid_post", "attn_out"],
        answer="last",
    )

    assert check["bound"] == 0.1
    assert check["largest_relative_error"] < 0.05


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
    found = [
        sweep.run_sweep(
            store,
            {"random": values[0]},
            multipliers=[-1.0, 0.0, 1.0],
            out=tmp_path / f"{i}.zarr",
            model=model,
            score="logprob",
        ).propensity_of("random")
        for i, model in enumerate((mapped, load_model(config.model)))
    ]
    np.testing.assert_array_equal(found[0], found[1])


def test_weights_that_do_not_fit_the_devices_are_refused(folder, tmp_path):
    places = {"model": "cpu", "lm_head": "disk"}

    with pytest.raises(ModelError, match="does not fit into the devices' memory"):
        load_model(str(folder / "model"), device_map=places)


def refused_configs():
    import transformers

    size: dict[str, Any] = {"hidden_size": 32, "num_hidden_layers": 2, "vocab_size": 97}
    return [
        (transformers.MambaConfig(**size), "recurrent state"),
        (transformers.Mamba2Config(**size, num_heads=8, head_dim=8), "recurrent state"),
        (transformers.JambaConfig(**size), "recurrent state"),
        (transformers.FalconH1Config(**size), "recurrent state"),
        (transformers.Lfm2Config(**size), "recurrent state"),
        (transformers.Qwen3NextConfig(**size), "recurrent state"),
        (transformers.RecurrentGemmaConfig(**size), "recurrent state"),
        (transformers.T5Config(), "encoder-decoder"),
        (transformers.BartConfig(), "encoder-decoder"),
    ]


@pytest.mark.parametrize(
    ("refused", "why"),
    [pytest.param(*each, id=each[0].model_type) for each in refused_configs()],
)
def test_a_family_is_refused_by_name_without_its_weights(refused, why, tmp_path):
    refused.save_pretrained(tmp_path)  # a config alone: there are no weights to be read

    for load in (load_config, load_model):
        with pytest.raises(ModelError, match=rf"'{refused.model_type}' .*{why}"):
            load(str(tmp_path))


def test_a_family_that_transformer_lens_does_not_know_is_refused_by_name(tmp_path):
    import transformers

    unknown = transformers.BioGptConfig(hidden_size=32, num_hidden_layers=2)
    unknown.architectures = ["BioGptForCausalLM"]
    unknown.save_pretrained(tmp_path)

    with pytest.raises(ModelError, match=r"cannot take the family 'biogpt' apart"):
        load_model(str(tmp_path))


CODE = """
from transformers import LlamaConfig
class TinyConfig(LlamaConfig):
    model_type = "llama"
"""


def test_code_of_a_checkpoint_runs_only_when_that_is_asked_for(folder, tmp_path):
    model = tmp_path / "model"
    shutil.copytree(folder / "model", model)
    found = json.loads((model / "config.json").read_text())
    found |= {"model_type": "tiny-of-its-own", "auto_map": {"AutoConfig": "code.TinyConfig"}}
    (model / "config.json").write_text(json.dumps(found))
    (model / "code.py").write_text(CODE)

    with pytest.raises(ModelError, match="pass --trust-remote-code"):
        load_config(str(model))
    assert load_config(str(model), trust_remote_code=True).hidden_size == 32
