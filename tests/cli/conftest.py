"""A tiny model, rows and a store, shared by the tests of all commands."""

import json

import pytest

from tests.cli.commands import build
from tests.support.tiny import save


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    """A tiny model, pairs, and labelled prompts."""
    folder = tmp_path_factory.mktemp("cli")
    save(folder / "model")
    pairs = [
        {
            "prompt": f"Is it {i}?",
            "positive": "(A)" if i % 2 else "(B)",
            "negative": "(B)" if i % 2 else "(A)",
        }
        for i in range(20)
    ]
    labels = [{"prompt": f"Do {i}.", "label": "harmful" if i % 2 else "fine"} for i in range(20)]
    for name, rows in (("pairs", pairs), ("labels", labels)):
        (folder / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return folder


@pytest.fixture(scope="session")
def built(folder):
    """A finished store of the pairs."""
    assert build(folder, folder / "built.zarr") == 0
    return folder / "built.zarr"
