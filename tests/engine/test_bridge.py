"""A TransformerBridge's own hooks give the values of our capture, and the same store."""

from typing import Any

import numpy as np
import pytest
import torch

from actcache.cli.main import main
from actcache.engine.model import adopt_model
from actcache.engine.reference import BridgeCapture
from actcache.engine.tree_capture import capture
from actcache.store.store import open_store
from tests.engine.test_sites import POSITIONS, SITES_BY_HAND
from tests.support.tiny import (
    CONFIGS,
    LAST_3,
    make,
    marked_rows,
    ragged_rows,
    rows_of_three_lengths,
)

pytestmark = pytest.mark.model


@pytest.mark.parametrize("family", ["llama", "gpt2", "mistral"])
def test_residuals_equal_the_hook_out_of_a_bridge(family):
    from transformer_lens.model_bridge.sources._bridge_builder import build_bridge_from_module

    model = adopt_model(make(family), name=family)
    row = ragged_rows()[0]
    residuals = capture(model, [row], positions=["prompt"], answer="first")["resid_post"]
    twin = make(family, attention="eager")  # a bridge rewrites the model that it is given

    bridge = build_bridge_from_module(twin, type(twin).__name__, hf_config=twin.config)
    names = [f"blocks.{layer}.hook_out" for layer in range(model.n_layers)]
    with torch.inference_mode():
        _, cache = bridge.run_with_cache(torch.tensor([row.prompt]), names_filter=names)

    bridged = torch.stack([cache[name][0, -1] for name in names])
    torch.testing.assert_close(residuals[0, :, 0], bridged, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("family", SITES_BY_HAND)
def test_each_site_equals_the_hooks_of_a_bridge(family):
    model = adopt_model(make(family), name=family)
    sites = ("resid_post", "embed", *SITES_BY_HAND[family])
    rows = rows_of_three_lengths()
    settings: dict[str, Any] = {"positions": POSITIONS, "answer": "first", "sites": sites}
    twin = make(family, attention="eager")  # rewritten in place: an instance of its own
    if family == "gpt_neox":  # its tiny config names key-value heads, which only the bridge reads
        twin.config.num_key_value_heads = twin.config.num_attention_heads
    bridge = BridgeCapture(twin)

    captured, of_bridge = (
        capture(model, rows, **settings),
        bridge(model, rows, **settings),
    )

    for site in sites:
        torch.testing.assert_close(captured[site], of_bridge[site], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("family", CONFIGS)
def test_attention_masses_equal_the_pattern_of_a_bridge(family):
    model = adopt_model(make(family), name=family)
    twin = make(family, attention="eager")  # rewritten in place: an instance of its own
    if family == "gpt_neox":  # its tiny config names key-value heads, which only the bridge reads
        twin.config.num_key_value_heads = twin.config.num_attention_heads
    settings: dict[str, Any] = {"positions": LAST_3, "answer": "first", "sites": ["attention"]}

    captured = capture(model, marked_rows(), **settings)["attention"]

    of_bridge = BridgeCapture(twin)(model, marked_rows(), **settings)["attention"]
    torch.testing.assert_close(captured, of_bridge, rtol=0, atol=1e-5)


def test_the_transformer_lens_engine_gives_the_same_store(calm, samples, config, store, tmp_path):
    status = main(
        [
            *("build", str(calm / "calm.jsonl"), "-o", str(tmp_path / "s.zarr"), "--json"),
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
