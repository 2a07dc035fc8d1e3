"""What most tests of builds share: a tiny model, sixty rows, and settings."""

import json

import numpy as np
import pytest

from actcache.build.config import BuildConfig
from actcache.data.formats import read_samples
from tests.support.tiny import lettered_rows, save


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A tiny model and sixty rows in two behaviors."""
    folder = tmp_path_factory.mktemp("build")
    save(folder / "model")
    rng = np.random.default_rng(0)
    for behavior in ("calm", "bold"):
        text = "\n".join(map(json.dumps, lettered_rows(30, rng)))
        (folder / f"{behavior}.jsonl").write_text(text, encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def samples(folder):
    return read_samples([folder / "calm.jsonl", folder / "bold.jsonl"])


@pytest.fixture(scope="module")
def config(folder):
    return BuildConfig(model=str(folder / "model"), batch_tokens=300, sites=("resid_post", "embed"))
