"""What can be refused before anything runs: an encoder that a store, a machine or a key forbids."""

from pathlib import Path

from actcache.encoders.base import EncoderSpec, distinct, texts_of
from actcache.encoders.cached import cached_layer
from actcache.encoders.connection import endpoint_of
from actcache.encoders.embedding_cache import EmbeddingCache, default_cache
from actcache.encoders.service import require_key
from actcache.store.store import Store


def require_encoder(
    store: Store, spec: EncoderSpec, *, base_url: str | None, cache: str | Path | None
) -> None:
    """Refuse what `encode` would refuse after the stages before it; sends and runs nothing.

    Raises:
        ActcacheError: the store lacks the layer or the position, the model of `hf` has no
            tokenizer, or the service of `openai` has a bad address or needs a key.
    """
    if spec.kind == "cache":
        cached_layer(store, spec)
    elif spec.kind == "hf":
        from actcache.engine.model import load_tokenizer

        load_tokenizer(spec.model)
    else:
        endpoint, path = endpoint_of(base_url), Path(cache or default_cache())
        missing, _ = distinct(texts_of(store))
        if path.exists():
            identity = (endpoint, spec.model, spec.dimensions)
            with EmbeddingCache(path, encoder=identity) as cached:
                missing = cached.missing(missing)
        if missing:
            require_key(endpoint)
