"""Stores: arrays and columns on disk, committed shard by shard. Needs NumPy only.

`README.md` in this folder describes the format.
"""

from typing import TYPE_CHECKING

from actcache.lazy import attach

if TYPE_CHECKING:
    from actcache.store.array import Residuals
    from actcache.store.columns import Columns
    from actcache.store.copies.copy import subset
    from actcache.store.copies.merge import Merged, merge
    from actcache.store.copies.selection import Selection
    from actcache.store.schema import Ragged, RowArray
    from actcache.store.storage import LocalStorage, MemoryStorage, Storage, atomic_path
    from actcache.store.store import Store, open_store
    from actcache.store.torch_dataset import ResidualDataset
    from actcache.store.verify import Problem, verify
    from actcache.store.writing.contents import StoreContents
    from actcache.store.writing.writer import Writer

__all__ = [
    "Columns",
    "LocalStorage",
    "MemoryStorage",
    "Merged",
    "Problem",
    "Ragged",
    "ResidualDataset",
    "Residuals",
    "RowArray",
    "Selection",
    "Storage",
    "Store",
    "StoreContents",
    "Writer",
    "atomic_path",
    "merge",
    "open_store",
    "subset",
    "verify",
]

__getattr__ = attach(__name__, __file__)
