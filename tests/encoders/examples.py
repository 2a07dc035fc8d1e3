"""What tests of encoders share: a small store, and requests to a service."""

import numpy as np

from actcache.encoders.openai import embed_texts
from actcache.encoders.service import Service
from actcache.progress import SILENT
from actcache.store.store import open_store
from tests.support.embedding_server import WIDTH, vector_of
from tests.support.stores import build, example

KEY = "sk-test-0123456789abcdefghijklmnopqrstuvwxyz"
TEXTS = [f"text {i}" for i in range(12)]


def store_of(folder, *, arrays=None, columns=None, values=None):
    settings, drawn = example(arrays=arrays)
    settings["columns"].update(columns or {})
    return open_store(build(folder / "a.zarr", settings, {**drawn, **(values or {})}))


def ask(
    server, texts=TEXTS, *, cache=None, progress=SILENT, on_texts=lambda _texts: None, **settings
):
    """Embed texts at a server, in batches of five."""
    settings = {"batch_texts": 5, "model": "m", "timeout": 5.0, **settings}
    service = Service(endpoint=server.url, **settings)
    return embed_texts(
        texts, service, names=texts, cache=cache, progress=progress, on_texts=on_texts
    )


def right(texts, width=WIDTH):
    """The right answers, one row a text."""
    return np.stack([vector_of(text, width) for text in texts])
