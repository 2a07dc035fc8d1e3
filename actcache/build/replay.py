"""What a later stage needs to run a store's rows again: their tokens, and the right model."""

from dataclasses import replace

from actcache.build.provenance import model_identity
from actcache.data.spans import CONTROL_SPAN, SPAN
from actcache.engine.model import LanguageModel, load_model
from actcache.errors import MismatchError
from actcache.identity import IDENTITY, require_same
from actcache.prompts.render import PARTS, Rendered
from actcache.store.store import Store


def rendered_rows(store: Store) -> list[Rendered]:
    """Read the tokens of a store's samples, as the build rendered them."""
    require_replayable(store)
    columns = [store.ragged(f"{part}_tokens") for part in PARTS]
    rows = [
        Rendered(**{part: tuple(ids.tolist()) for part, ids in zip(PARTS, tokens, strict=True)})
        for tokens in zip(*columns, strict=True)
    ]
    for field in (SPAN, CONTROL_SPAN):  # columns and fields have the same names
        if field in store.columns:
            spans = map(tuple, store[field].tolist())
            rows = [replace(row, **{field: span}) for row, span in zip(rows, spans, strict=True)]
    return rows


def rendered_pairs(store: Store) -> list[Rendered]:
    """Read the tokens of a store of pairs; refuse a store of labelled prompts."""
    rows = rendered_rows(store)
    if not all(row.positive for row in rows):
        raise MismatchError(
            "the store holds prompts without completions, so there is no choice to steer; expected "
            "pairs. Run the stages vectors and layers, or build a store from pairs."
        )
    return rows


def require_replayable(store: Store) -> None:
    """Refuse a store without the tokens of its rows or the digest of its model."""
    missing = [part for part in PARTS if f"{part}_tokens" not in store.columns.ragged_names]
    if missing or not store.provenance.get("model", {}).get("weights_sha256"):
        raise MismatchError(
            f"'{store.path}' was imported without model and tokens, expected a store that build "
            "wrote, whose rows can be run again. Run the stages that need no model: --stages "
            "vectors,layers."
        )


def load_store_model(
    store: Store,
    *,
    name: str | None = None,
    device: str = "auto",
    device_map: str | None = None,
    trust_remote_code: bool = False,
) -> LanguageModel:
    """Load the model that a store was built with, in the same dtype.

    It is looked for under `name` if it was moved, and refused if it has other weights.
    """
    require_replayable(store)
    recorded = store.provenance["model"]
    model = load_model(
        name or recorded["name"],
        revision=store.config["revision"],
        dtype=recorded["dtype"],
        device=device,
        device_map=device_map,
        trust_remote_code=trust_remote_code,
    )
    require_store_model(store, model)
    return model


def require_store_model(store: Store, model: LanguageModel) -> None:
    """Refuse a model other than the one that a store was built with."""
    recorded = store.provenance["model"]
    require_same(
        model_identity(model),
        {field: recorded[field] for field in IDENTITY},
        what="the model and that of the store",
        remedy=f"Load the one that the store was built with, '{recorded['name']}'.",
    )
