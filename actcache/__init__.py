"""Cache a language model's residuals once; answer steering research's questions from the cache.

    store = actcache.build_store("rows/*.jsonl", "tidy.zarr", model="meta-llama/Llama-2-7b-chat-hf")
    store = actcache.open_store("tidy.zarr")

Opening and reading a store needs NumPy alone, neither torch nor the model. The analyses are in
`actcache.analysis`, the command line is `actcache`.
"""

from typing import TYPE_CHECKING

from actcache.lazy import attach

if TYPE_CHECKING:
    from actcache import demo
    from actcache.build import build_store
    from actcache.encoders import encode
    from actcache.engine import load_model
    from actcache.errors import ActcacheError
    from actcache.exchange import export, import_store
    from actcache.steering import (
        PromptGate,
        Request,
        Steering,
        SteeringSource,
        SteeringSum,
        TokenGate,
        generate,
        steer,
    )
    from actcache.store import Residuals, Store, merge, open_store, subset, verify

__all__ = [
    "ActcacheError",
    "PromptGate",
    "Request",
    "Residuals",
    "Steering",
    "SteeringSource",
    "SteeringSum",
    "Store",
    "TokenGate",
    "build_store",
    "demo",
    "encode",
    "export",
    "generate",
    "import_store",
    "load_model",
    "merge",
    "open_store",
    "steer",
    "subset",
    "verify",
]

__getattr__ = attach(__name__, __file__)
