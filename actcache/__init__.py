"""Cache a language model's residuals once; answer steering research's questions from the cache.

    store = actcache.open_store("STORE.zarr")

Opening and reading a store needs NumPy alone, neither torch nor the model.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from actcache.store.store import Residuals, Store, open_store

__all__ = ["Residuals", "Store", "open_store"]


def __getattr__(name: str) -> Any:
    # Imported on first use: `actcache --help` starts without NumPy.
    if name in __all__:
        from actcache.store import store

        return getattr(store, name)
    raise AttributeError(f"module 'actcache' has no attribute '{name}'")
