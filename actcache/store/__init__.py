"""Stores: arrays and columns on disk, committed shard by shard. Needs NumPy only.

`README.md` in this folder describes the format.
"""

from actcache.lazy import attach

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

__getattr__ = attach(
    __name__,
    {
        "actcache.store.array": ["Residuals"],
        "actcache.store.columns": ["Columns"],
        "actcache.store.contents": ["StoreContents"],
        "actcache.store.copies.copy": ["subset"],
        "actcache.store.copies.merge": ["Merged", "merge"],
        "actcache.store.copies.selection": ["Selection"],
        "actcache.store.schema": ["Ragged", "RowArray"],
        "actcache.store.storage": ["LocalStorage", "MemoryStorage", "Storage", "atomic_path"],
        "actcache.store.store": ["Store", "open_store"],
        "actcache.store.torch_dataset": ["ResidualDataset"],
        "actcache.store.verify": ["Problem", "verify"],
        "actcache.store.writer": ["Writer"],
    },
)
