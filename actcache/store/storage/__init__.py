"""Where the bytes of a store are: one protocol, local files as its fast path, and memory."""

from actcache.store.storage.atomic import atomic_path
from actcache.store.storage.local import LocalStorage
from actcache.store.storage.memory import MemoryStorage
from actcache.store.storage.protocol import Storage

__all__ = ["LocalStorage", "MemoryStorage", "Storage", "atomic_path"]
