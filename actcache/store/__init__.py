"""Stores on disk: written shard by shard, read with NumPy alone."""

from actcache.store.store import Columns, Problem, Residuals, Store, open_store, verify

__all__ = ["Columns", "Problem", "Residuals", "Store", "open_store", "verify"]
