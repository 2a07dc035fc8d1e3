"""Where the bytes of a store are: one protocol; local files as its fast path, memory, a bucket."""

from actcache.store.storage.atomic import atomic_path
from actcache.store.storage.local import LocalStorage
from actcache.store.storage.memory import MemoryStorage
from actcache.store.storage.protocol import Storage
from actcache.store.storage.s3 import S3Storage, require_create_only

__all__ = [
    "LocalStorage",
    "MemoryStorage",
    "S3Storage",
    "Storage",
    "atomic_path",
    "require_create_only",
]
