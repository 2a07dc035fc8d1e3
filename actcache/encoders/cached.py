"""The language model's own residuals as embeddings: the store holds them already, so they are free.

The W2S paper compares the first layer's last token (`cache:0`) and mean token (`cache:mean:0`) with
encoders of text, and tried no deeper layer (arXiv 2604.03867). Any layer may be used here: the
prompt is read before the first steered token. Residuals are those of the tokens that the model saw,
chat template and system message included.
"""

from actcache.encoders.base import (
    Embeddings,
    EncoderSpec,
    row_names,
    texts_digest,
    texts_of,
    unit_rows,
)
from actcache.errors import MismatchError
from actcache.store.store import Store


def cached_layer(store: Store, spec: EncoderSpec) -> tuple[str, int]:
    """Find the array and the layer that an encoder reads; refuse what the store lacks."""
    array = f"resid_post/{spec.position}"
    if array not in store.arrays:
        positions = dict.fromkeys([*(store.config.get("positions") or []), spec.position])
        raise MismatchError(
            f"'{store.path}' has no '{array}', expected it for the encoder '{spec.text}' (it has "
            f"{', '.join(store.arrays)}). Build a store with --positions {','.join(positions)}."
        )
    n_layers = store.array(array).shape[1]
    layer = n_layers // 2 if spec.layer is None else spec.layer
    if layer >= n_layers:
        raise MismatchError(
            f"the encoder '{spec.text}' reads layer {layer}, but '{store.path}' has layers 0 to "
            f"{n_layers - 1}. Pass one of them."
        )
    return array, layer


def cached_residuals(store: Store, spec: EncoderSpec) -> Embeddings:
    """Read the residual of each prompt after one layer, scaled to length 1."""
    array, layer = cached_layer(store, spec)
    values = unit_rows(
        store.array(array).layer(layer),
        names=row_names(store),
        what=f"the residual '{array}' after layer {layer}",
    )
    model = store.provenance.get("model") or {}
    return Embeddings(
        values=values,
        name=f"cache:{layer}" if spec.position == "prompt" else f"cache:{spec.position}:{layer}",
        settings={
            "encoder": "cache",
            "model": model.get("name"),
            "weights_sha256": model.get("weights_sha256"),
            "dtype": model.get("dtype"),
            "array": array,
            "layer": layer,
            "dimension": values.shape[1],
            "texts_sha256": texts_digest(texts_of(store)),
        },
        n_new=0,
        n_cached=store.n,
        tokens=0,
    )
