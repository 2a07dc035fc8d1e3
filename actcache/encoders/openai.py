"""Embeddings of a service that speaks OpenAI's protocol: each text is paid for once."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from actcache.encoders.base import TextVectors
from actcache.encoders.connection import RefusedError
from actcache.encoders.embedding_cache import EmbeddingCache, default_cache
from actcache.encoders.service import Client, Service
from actcache.errors import ActcacheError
from actcache.progress import SILENT, Progress


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What will be sent to a service; `str` gives it as one line."""

    service: Service
    n_new: int
    n_cached: int
    """Distinct texts that will be sent, and those that were paid for before."""

    tokens: int
    """Estimated tokens of the new texts: one for four bytes, which is about right for English."""

    def __str__(self) -> str:
        return (
            f"{self.n_new:,} new texts for {self.service.model} at {self.service.endpoint} "
            f"({self.n_cached:,} are cached): about {self.tokens:,} tokens"
        )


def embed_texts(
    texts: Sequence[str],
    service: Service,
    *,
    names: Sequence[str],
    cache: Path | None = None,
    progress: Progress = SILENT,
    on_texts: Callable[[Sequence[str]], None] = lambda _texts: None,
) -> TextVectors:
    """Embed distinct texts, sending only those that are not cached.

    Each batch is on disk before the next is requested, so the same call resumes a killed run. If no
    text is new, the service is not contacted and no key is needed. `names`, one a text, are for
    messages; `on_texts` receives the texts that are done.
    """
    name_of = dict(zip(texts, names, strict=True))
    if "" in name_of:
        raise ActcacheError(
            f"the prompt of sample '{name_of['']}' is empty, expected a text: services embed no "
            "empty one. Leave that sample out, or use the encoder cache."
        )
    identity = (service.endpoint, service.model, service.dimensions)
    with EmbeddingCache(cache or default_cache(), encoder=identity) as cached:
        missing = cached.missing(texts)
        n_cached, tokens = len(texts) - len(missing), 0
        new = set(missing)
        on_texts([text for text in texts if text not in new])
        if missing:
            with Client(service) as client:
                guess = sum(-(-len(text.encode()) // 4) for text in missing)
                progress.cost(
                    Cost(service=service, n_new=len(missing), n_cached=n_cached, tokens=guess)
                )
                tokens = _embed_missing(missing, client, cached, name_of, on_texts)
        vectors = cached.read(texts)
    return TextVectors(
        vectors=vectors,
        settings={
            "model": service.model,
            "endpoint": service.endpoint,
            "dimensions_asked": service.dimensions,
            "dimension": vectors.shape[1],
        },
        n_new=len(missing),
        n_cached=n_cached,
        tokens=tokens,
    )


def _embed_missing(
    missing: Sequence[str],
    client: Client,
    cached: EmbeddingCache,
    name_of: Mapping[str, str],
    on_texts: Callable[[Sequence[str]], None],
) -> int:
    """Embed batch by batch into the cache; return the tokens that the service counted."""
    service = client.service
    start, most, tokens = 0, service.batch_texts, 0
    while start < len(missing):
        batch = _batch(missing[start : start + most], service.batch_bytes)
        unknown = cached.missing(batch)  # another process may have embedded some since
        if unknown:
            try:
                vectors, counted = client.embed(unknown, width=cached.dimension)
            except RefusedError as error:
                if len(unknown) == 1:
                    raise ActcacheError(
                        f"{error}, even for the prompt of sample '{name_of[unknown[0]]}' alone "
                        f"({len(unknown[0].encode())} bytes). Shorten or leave out that sample, or "
                        "use another model."
                    ) from None
                most = len(unknown) // 2
                continue
            cached.put(unknown, vectors)
            tokens += counted
        start += len(batch)
        on_texts(batch)
    return tokens


def _batch(texts: Sequence[str], most_bytes: int) -> Sequence[str]:
    """As many of the first texts as fit into a request; at least one."""
    sizes = np.cumsum([len(text.encode()) for text in texts])
    return texts[: max(int(np.searchsorted(sizes, most_bytes, side="right")), 1)]
