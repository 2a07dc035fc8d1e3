"""The language model's own states as embeddings: what the store holds already, so free.

Reads one layer of one position; runs no model.
"""

from actcache.encoders.base import Embeddings, unit_rows
from actcache.encoders.spec import EncoderSpec
from actcache.encoders.texts import row_names, texts_digest, texts_of
from actcache.errors import MismatchError
from actcache.store.store import Store


def cached_states(spec: EncoderSpec, store: Store) -> Embeddings:
    """The residual of each prompt after one layer, scaled to length 1.

    The W2S paper compares the first layer's last token (`cache:0`) and mean token (`cache:mean:0`)
    with encoders of text, and tried no deeper layer (arXiv 2604.03867). No deeper one is barred:
    the prompt is read before the first steered token, and residuals of all layers are there.
    They are those of the tokens that the model saw, chat template and system message with them.

    Args:
        spec: of kind `cache`.
        store: of residuals; float16 and bfloat16 are read as they are.

    Returns:
        `[n, d_model]`; `n_kept` is `n`, and no token was run.

    Raises:
        MismatchError: the store lacks the position or the layer, or a residual is all zeros.
    """
    array = f"resid_post/{spec.position}"
    if array not in store.arrays:
        raise MismatchError(
            f"'{store.path}' has no '{array}', expected it for the encoder '{spec.text}' (it has "
            f"{', '.join(store.arrays)}). Build a store with --positions {_with(store, spec)}."
        )
    residuals = store.array(array)
    n_layers = residuals.shape[1]
    layer = n_layers // 2 if spec.layer is None else spec.layer
    if layer >= n_layers:
        raise MismatchError(
            f"the encoder '{spec.text}' asks for layer {layer}, but '{store.path}' has layers 0 to "
            f"{n_layers - 1}. Pass one of them."
        )
    values = unit_rows(
        residuals.layer(layer),
        names=row_names(store),
        what=f"the residual '{array}' after layer {layer}",
    )
    model = store.provenance.get("model") or {}
    kept = {name: model.get(name) for name in ("name", "weights_sha256", "dtype")}
    return Embeddings(
        values=values,
        name=f"cache:{layer}" if spec.position == "prompt" else f"cache:{spec.position}:{layer}",
        settings={
            "encoder": "cache",
            "model": kept["name"],
            "weights_sha256": kept["weights_sha256"],
            "dtype": kept["dtype"],
            "array": array,
            "layer": layer,
            "dimension": values.shape[1],
            "texts_sha256": texts_digest(texts_of(store)),
        },
        n_new=0,
        n_kept=store.n,
        tokens=0,
    )


def _with(store: Store, spec: EncoderSpec) -> str:
    """The store's positions and the one that is missing, as the flag takes them."""
    asked = store.config.get("positions") or []
    return ",".join(dict.fromkeys([*asked, spec.position]))
