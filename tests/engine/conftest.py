"""A small store with many sites and positions, and what it was built from."""

import json

import pytest

from actcache.build.config import BuildConfig
from actcache.build.plan import plan_build
from actcache.build.run import run_build
from actcache.data.formats import read_samples
from tests.support.tiny import save


@pytest.fixture(scope="session")
def calm(tmp_path_factory):
    """A folder with a tiny model, which has a chat template, and six pairs."""
    folder = tmp_path_factory.mktemp("engine")
    save(folder / "model")
    rows = [
        {"prompt": "abcdef"[: i + 1] + "?", "positive": "(A)", "negative": "(B)"} for i in range(6)
    ]
    text = "\n".join(json.dumps(row) for row in rows)
    (folder / "calm.jsonl").write_text(text, encoding="utf-8")
    return folder


@pytest.fixture(scope="session")
def samples(calm):
    return read_samples([calm / "calm.jsonl"])


@pytest.fixture(scope="session")
def config(calm):
    return BuildConfig(
        model=str(calm / "model"),
        sites=("resid_post", "resid_mid", "attn_out", "mlp_out", "heads", "ln1", "ln2", "embed"),
        positions=("prompt", "positive", "mean", "template:2"),
    )


@pytest.fixture(scope="session")
def store(samples, config, tmp_path_factory):
    return run_build(plan_build(samples, config), tmp_path_factory.mktemp("built") / "s.zarr")
