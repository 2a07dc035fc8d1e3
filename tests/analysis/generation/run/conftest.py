"""A tiny model and a steering of it, as files."""

import json

import numpy as np
import pytest

from actcache.steering.source import SteeringSource
from actcache.steering.steering import Steering
from tests.support.tiny import save


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory):
    return save(tmp_path_factory.mktemp("steered") / "model")


@pytest.fixture(scope="session")
def steering(model_folder):
    """A random vector at layer 1 of the tiny model, strong enough to change texts."""
    vector = np.random.default_rng(0).standard_normal((1, 32)).astype(np.float32)
    source = SteeringSource(model=model_folder, behavior="mood")
    return Steering(layers=(1,), vectors=vector, source=source)


@pytest.fixture(scope="session")
def steering_file(steering, model_folder, tmp_path_factory):
    path = tmp_path_factory.mktemp("file") / "mood.safetensors"
    steering.save(path)
    return path


@pytest.fixture(scope="session")
def rows_file(tmp_path_factory):
    """Twelve prompts of many lengths, a third of them for validation."""
    path = tmp_path_factory.mktemp("rows") / "mood.jsonl"
    rows = [
        {
            "prompt": "well " * (i % 5 + 1) + f"{i}?",
            "positive": "(A)",
            "negative": "(B)",
            "split": "validation" if i % 3 == 0 else "test",
        }
        for i in range(12)
    ]
    path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return path
