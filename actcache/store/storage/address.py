"""What a path means: a folder, or with `s3://` a place in a bucket."""

import re
from pathlib import Path

from actcache.errors import ActcacheError
from actcache.store.storage.local import LocalStorage
from actcache.store.storage.protocol import Storage

SCHEME = "s3://"

_BUCKET = re.compile(r"[sS]3:/+")  # `Path("s3://bucket/x")` is `s3:/bucket/x`


def bucket_address(path: object) -> str | None:
    """The address `s3://bucket/…` that a path or text means; None for a folder."""
    text = str(path)
    address = _BUCKET.match(text)
    return f"{SCHEME}{text[address.end() :].rstrip('/')}" if address else None


def storage_at(path: str | Path) -> Storage:
    """The storage of a store: its folder, or its place in a bucket.

    Raises:
        ActcacheError: it is in a bucket that cannot be read: names what is missing or wrong.
    """
    address = bucket_address(path)
    if address is None:
        return LocalStorage(Path(path))
    from actcache.store.storage.s3 import S3Storage  # needs obstore

    return S3Storage(address)


def require_folder(path: object, what: str, *, remedy: str = "Pass another path with -o.") -> None:
    """Refuse an address in a bucket where only a folder will do.

    Raises:
        ActcacheError: says that `what` is written to a folder.
    """
    address = bucket_address(path)
    if address is not None:
        raise ActcacheError(
            f"{what} would go to '{address}', expected a path on this machine: only stores are "
            f"written to a bucket. {remedy}"
        )
