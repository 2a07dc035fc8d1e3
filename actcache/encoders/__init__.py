"""Prompts as vectors, one of length 1 for each row: what a predictor of layers reads (W2S).

    encode(store, "cache:6").values          [n, e]

Importing this imports neither torch nor openai.
"""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from actcache.encoders.base import (
    Embeddings,
    EncoderSpec,
    distinct,
    parse_encoder,
    row_names,
    texts_digest,
    texts_of,
    unit_rows,
)
from actcache.encoders.cached import cached_residuals
from actcache.encoders.connection import endpoint_of
from actcache.encoders.embedding_cache import default_cache
from actcache.encoders.openai import Cost, embed_texts
from actcache.encoders.sentence import encode_sentences
from actcache.encoders.service import Service
from actcache.progress import AUTOMATIC, Progress
from actcache.store.store import Store

__all__ = [
    "Cost",
    "Embeddings",
    "EncoderSpec",
    "default_cache",
    "encode",
    "parse_encoder",
    "texts_of",
]


def encode(
    store: Store,
    encoder: str | EncoderSpec,
    *,
    device: str = "cpu",
    base_url: str | None = None,
    cache: str | Path | None = None,
    progress: Progress = AUTOMATIC,
) -> Embeddings:
    """Turn the prompts of a store into vectors of length 1.

    Texts are as `texts_of` returns them; rows of equal text are embedded once.

    Args:
        store: whose rows; of a partial store the committed ones.
        encoder: its name, such as `cache:6`, `hf:bert-base-uncased` or
            `openai:text-embedding-3-large`; see `parse_encoder`.
        device: for `hf`: `auto` (cuda, else mps, else cpu) or a torch device.
        base_url: for `openai`: the service's address; by default `$OPENAI_BASE_URL`, or OpenAI's.
        cache: for `openai`: the file of embeddings that are paid for; by default `default_cache()`.
        progress: shows the rows, and for `openai` the `Cost` before the first request.

    Raises:
        ActcacheError: the store lacks what `cache` reads, a vector is all zeros, the model of `hf`
            cannot be used, or the service of `openai` or its cache fails.
    """
    spec = parse_encoder(encoder) if isinstance(encoder, str) else encoder
    with progress.steps(f"encoder {spec.text}", store.n) as on_rows:
        if spec.kind == "cache":
            residuals = cached_residuals(store, spec)
            on_rows(store.n)
            return residuals
        texts, names = texts_of(store), row_names(store)
        once, index = distinct(texts)
        n_rows = Counter(texts)

        def on_texts(done: Sequence[str]) -> None:
            on_rows(sum(n_rows[text] for text in done))

        if spec.kind == "hf":
            embedded = encode_sentences(
                once, model=spec.model, pooling=spec.pooling, device=device, on_texts=on_texts
            )
        else:
            first_name = dict(zip(reversed(texts), reversed(names), strict=True))
            endpoint = endpoint_of(base_url)
            embedded = embed_texts(
                once,
                Service(endpoint=endpoint, model=spec.model, dimensions=spec.dimensions),
                names=[first_name[text] for text in once],
                cache=None if cache is None else Path(cache),
                progress=progress,
                on_texts=on_texts,
            )
    what = f"the vector of '{spec.text}'"
    return Embeddings(
        values=unit_rows(embedded.vectors[index], names=names, what=what),
        name=spec.text,
        settings={"encoder": spec.kind, **embedded.settings, "texts_sha256": texts_digest(texts)},
        n_new=embedded.n_new,
        n_cached=embedded.n_cached,
        tokens=embedded.tokens,
        n_truncated=embedded.n_truncated,
    )
