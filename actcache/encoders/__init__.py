"""Prompts as vectors: what a predictor of layers reads (W2S). One vector of length 1 a row.

    encode(parse_encoder("cache:6"), store).values          [n, e]

`spec` names encoders; `states` takes them from the store, `sentence` runs one here, `api` asks a
service and keeps what was paid for (`kept`, `price`, `service`). Importing this imports neither
torch nor openai; knows no labels and no predictor.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

from actcache.encoders.base import Embeddings, unit_rows
from actcache.encoders.cached import cached_states
from actcache.encoders.embedding_cache import default_keeper
from actcache.encoders.openai import ask_service
from actcache.encoders.price import Cost
from actcache.encoders.sentence import encode_sentences
from actcache.encoders.spec import EncoderSpec, parse_encoder
from actcache.encoders.texts import distinct, row_names, texts_digest, texts_of
from actcache.store.store import Store

__all__ = [
    "Cost",
    "Embeddings",
    "EncoderSpec",
    "default_keeper",
    "encode",
    "parse_encoder",
    "texts_of",
]


def encode(
    spec: EncoderSpec,
    store: Store,
    *,
    keeper: Path | None = None,
    base_url: str | None = None,
    device: str = "cpu",
    confirm: Callable[[Cost], None] = lambda _cost: None,
    on_rows: Callable[[int], None] = lambda _n: None,
) -> Embeddings:
    """The prompts of a store as vectors of length 1.

    Texts are as `texts_of` gives them; rows that say the same are embedded once.

    Args:
        spec: which encoder, from `parse_encoder`.
        store: whose rows; of a partial one those that are committed.
        keeper: of `openai`: the file of what was paid for; by default `default_keeper()`.
        base_url: of `openai`: the service's address; by default `$OPENAI_BASE_URL`, or OpenAI's.
        device: of `hf`: where it runs; `auto` (cuda, else mps, else cpu) or a torch device.
        confirm: of `openai`: given what it will cost before the first request, and may raise. It
            is not called where nothing is new.
        on_rows: told how many rows are done, each time; in all `store.n`.

    Returns:
        The vectors in the store's order.

    Raises:
        MismatchError: the store lacks what `cache` reads, or a row's vector is all zeros.
        ModelError: the model of `hf` cannot be loaded, or pools in a way that is not known.
        ActcacheError: the service of `openai` fails, or the file of what was paid for.
    """
    if spec.kind == "cache":
        states = cached_states(spec, store)
        on_rows(store.n)
        return states
    texts = texts_of(store)
    once, places = distinct(texts)
    names = row_names(store)
    counts = Counter(texts)

    def on_texts(done: Sequence[str]) -> None:
        on_rows(sum(counts[text] for text in done))

    if spec.kind == "hf":
        found = encode_sentences(
            once, model=spec.model, pooling=spec.pooling, device=device, on_texts=on_texts
        )
        n_new, n_kept, n_truncated = len(once), 0, found.n_truncated
        vectors, settings, tokens = found.vectors, found.settings, found.tokens
    else:
        firsts = dict(zip(reversed(texts), reversed(names), strict=True))
        asked = ask_service(
            once,
            names=[firsts[text] for text in once],
            model=spec.model,
            dimensions=spec.dimensions,
            base_url=base_url,
            keeper=keeper,
            confirm=confirm,
            on_texts=on_texts,
        )
        n_new, n_kept, n_truncated = asked.n_new, asked.n_kept, 0
        vectors, settings, tokens = asked.vectors, asked.settings, asked.tokens
    return Embeddings(
        values=unit_rows(vectors[places], names=names, what=f"the vector of '{spec.text}'"),
        name=spec.text,
        settings={"encoder": spec.kind, **settings, "texts_sha256": texts_digest(texts)},
        n_new=n_new,
        n_kept=n_kept,
        tokens=tokens,
        n_truncated=n_truncated,
    )
