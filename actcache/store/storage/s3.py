"""Objects in an S3-compatible bucket, over obstore: the storage of a store at `s3://…`.

A bucket has no folders, no renames and no locks. What is written once is written create-only
(`If-None-Match: *`), and safety among writers rests on that alone.
"""

import os
import re
import secrets
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from actcache.errors import ActcacheError, BucketError, DamageError, refuse
from actcache.store.storage.protocol import Buffer, Parts, Range, Storage
from actcache.store.storage.s3_client import PATIENCE_S, S3Client

if TYPE_CHECKING:
    from obstore import GetResult, ObjectMeta
    from obstore.store import S3Store

SCHEME = "s3://"

N_THREADS = 16
"""Requests that are under way at the same time, where several are asked for at once."""

A = TypeVar("A")
B = TypeVar("B")


class S3Storage(Storage):
    """Objects below one prefix of a bucket.

    Endpoint, region and keys come from the usual AWS variables: AWS_ACCESS_KEY_ID,
    AWS_SECRET_ACCESS_KEY, AWS_SESSION_TOKEN, AWS_REGION or AWS_DEFAULT_REGION, AWS_ENDPOINT_URL_S3
    or AWS_ENDPOINT_URL. Nothing is sent before the first request. It travels to other processes
    without the keys: they take their own from the same variables.

    Args:
        address: `s3://bucket/prefix`.
        patience: seconds for which a request is repeated while the endpoint does not answer.
        environment: where the AWS variables stand; the process's own if None.

    Raises:
        ActcacheError: the address names no store, obstore is not installed, or a variable is of
            no use.
    """

    def __init__(
        self,
        address: str,
        *,
        patience: float = PATIENCE_S,
        environment: Mapping[str, str] | None = None,
    ):
        bucket, self.prefix = _split_address(address)
        self._client = S3Client(
            bucket,
            patience=patience,
            environment=os.environ if environment is None else environment,
        )

    def __repr__(self) -> str:
        return f"S3Storage('{self.location}')"

    @property
    def location(self) -> str:
        """The address."""
        return f"{SCHEME}{self._client.bucket}/{self.prefix}"

    @property
    def is_shared(self) -> bool:
        """Anybody with keys may write to a bucket at any time."""
        return True

    def sibling(self, suffix: str) -> "S3Storage":
        """The prefix beside this one, over the same connections."""
        sibling = object.__new__(S3Storage)
        sibling.prefix = self.prefix + suffix
        sibling._client = self._client
        return sibling

    def exists(self, name: str) -> bool:
        """Whether there is such an object."""
        try:
            self._head(name)
        except DamageError:
            return False
        return True

    def size(self, name: str) -> int:
        """Bytes of an object."""
        return self._head(name)["size"]

    def etag(self, name: str) -> str:
        """The server's ETag."""
        return _unquoted(self._head(name)["e_tag"])

    def list(self, folder: str = "") -> list[str]:
        """Objects and folders directly in a folder."""
        key = self._key(folder)
        listed = self._ask(folder, "list", lambda store, _: store.list_with_delimiter(key))
        folders = [self._name(prefix) for prefix in listed["common_prefixes"]]
        # SeaweedFS lists a folder for a while after its last object was removed.
        holding = zip(folders, _in_order(self._holds, folders), strict=True)
        return [
            *(f"{name}/" for name, holds in holding if holds),
            *self._by_name(listed["objects"], folder),
        ]

    def sizes(self, folder: str = "") -> dict[str, int]:
        """Bytes of every object below a folder: one LIST, of a thousand objects a page."""
        return {name: meta["size"] for name, meta in self._list_below(folder).items()}

    def etags(self, folder: str = "") -> dict[str, str]:
        """The ETag of every object below a folder: one LIST."""
        return {name: _unquoted(meta["e_tag"]) for name, meta in self._list_below(folder).items()}

    def read(self, name: str, *, n_bytes: int | None = None, at_most: int | None = None) -> bytes:
        """All of an object; its size is checked before its bytes are sent."""

        def get(store: "S3Store", _: int) -> bytes:
            answer = store.get(self._key(name))
            size = answer.meta["size"]
            if n_bytes is not None and size != n_bytes:
                refuse(self.where(name), f"{size} bytes", f"{n_bytes}")
            if at_most is not None and size > at_most:
                refuse(self.where(name), f"{size} bytes", f"{at_most} at most")
            return bytes(answer.bytes())

        return self._ask(name, "read", get)

    def read_range(self, name: str, start: int, stop: int) -> bytes:
        """Some bytes of an object."""
        return bytes(self._read_range((name, start, stop)))

    def _read_range(self, part: Range) -> Buffer:
        """Some bytes of an object, as obstore holds them: no copy is made."""
        name, start, stop = part
        if start == stop:  # no range that can be asked for
            if (size := self.size(name)) < stop:
                refuse(self.where(name), f"{size} bytes", f"{stop} or more")
            return b""

        def get(store: "S3Store", _: int) -> Buffer:
            try:
                return memoryview(store.get_range(self._key(name), start=start, end=stop))
            except BaseException as error:
                if " 416 " not in str(error):
                    raise
            return b""  # the object ends before the range begins

        raw = self._ask(name, "read", get)
        if len(raw) != stop - start:
            refuse(self.where(name), f"{self.size(name)} bytes", f"{stop} or more")
        return raw

    def read_many(self, names: Sequence[str], *, n_bytes: int | None = None) -> Iterator[bytes]:
        """All of several objects, several at a time."""
        return _in_order(lambda name: self.read(name, n_bytes=n_bytes), names)

    def read_ranges(self, ranges: Sequence[Range]) -> Iterator[Buffer]:
        """Some bytes of several objects, several at a time."""
        return _in_order(self._read_range, ranges)

    def write(self, name: str, parts: Parts) -> None:
        """Replace an object, whole or not at all."""
        buffers = _buffers(parts)
        self._ask(
            name,
            "write",
            lambda store, _: store.put(self._key(name), buffers, use_multipart=False),
        )

    def write_small(self, objects: Mapping[str, bytes]) -> None:
        """Write objects, several at a time."""
        for _ in _in_order(lambda item: self.write(item[0], [item[1]]), [*objects.items()]):
            pass

    def put_if_absent(self, name: str, parts: Parts) -> str | None:
        """Write an object unless the name is taken, however many attempts that takes.

        If an attempt got no answer, it may have written the object all the same. So when a later
        one finds the name taken, the object is read back: equal bytes are our own, or as good.
        """
        buffers, key = _buffers(parts), self._key(name)

        def create(store: "S3Store", attempt: int) -> str | None:
            from obstore.exceptions import AlreadyExistsError

            try:
                return _unquoted(
                    store.put(key, buffers, mode="create", use_multipart=False)["e_tag"]
                )
            except AlreadyExistsError as error:
                if " 409 " in str(error):  # another writer of this name is not done: ask again
                    raise
            if attempt == 0:
                return None
            stored = store.get(key)
            return _unquoted(stored.meta["e_tag"]) if _are_bytes_of(stored, buffers) else None

        return self._ask(name, "write", create)

    def remove(self, name: str) -> None:
        """Remove an object, or all of a folder."""
        below = [self._key(n) for n in self._list_below(name)]
        keys = [self._key(name), *below] if name else below
        if keys:
            self._ask(name, "remove", lambda store, _: store.delete(keys))

    def lock(self) -> Callable[[], None]:
        """Do nothing: a bucket has no locks. Other writers are met by `put_if_absent` alone."""
        return _release_nothing

    def _ask(self, name: str, verb: str, request: "Callable[[S3Store, int], A]") -> A:
        where = self.where(name) if name else self.location
        return self._client.ask(where, verb, request, folder=self.prefix)

    def _head(self, name: str) -> "ObjectMeta":
        return self._ask(name, "read", lambda store, _: store.head(self._key(name)))

    def _holds(self, folder: str) -> bool:
        """Whether there is any object below a folder."""
        key = self._key(folder)
        return bool(self._ask(folder, "list", lambda store, _: next(store.list(key), None)))

    def _list_below(self, folder: str) -> "dict[str, ObjectMeta]":
        key = self._key(folder)
        return self._by_name(
            self._ask(folder, "list", lambda store, _: store.list(key).collect()), folder
        )

    def _by_name(self, listed: "Sequence[ObjectMeta]", folder: str) -> "dict[str, ObjectMeta]":
        names = ((self._name(meta["path"]), meta) for meta in listed)
        return {name: meta for name, meta in names if name != folder}  # some servers list it too

    def _key(self, name: str) -> str:
        return f"{self.prefix}/{name}" if name else self.prefix

    def _name(self, key: str) -> str:
        return key[len(self.prefix) + 1 :]


def require_create_only(storage: Storage) -> None:
    """Refuse a storage where a second writer of a name would replace the first one's object.

    Tried with two writes of an object beside the store, which is then removed. So are the keys'
    rights to write, read and remove.

    Raises:
        ActcacheError: it ignores that a name is taken, or refuses one of these requests. The
            message names the storage, not what lies beside it.
    """
    beside, name = storage.sibling(".probe"), secrets.token_hex(8)
    try:
        first = beside.put_if_absent(name, [b"first"])
        second = beside.put_if_absent(name, [b"second"])
        raw = beside.read(name)
        beside.remove(name)
    except BucketError as error:
        refusal = str(error)
    else:
        refusal = ""
    if refusal:  # raised here, so that nothing of the server's text hangs on it
        for address in (beside.where(name), beside.location):
            refusal = refusal.replace(f"'{address}'", f"'{storage.location}'")
        raise BucketError(refusal)
    if not first or second or raw != b"first":
        raise ActcacheError(
            f"'{storage.location}' is where a second write of one name replaces the first, "
            "although it is sent with If-None-Match, expected an endpoint that refuses it. Use one "
            "with conditional writes, or build into a folder and copy the store."
        )


def _split_address(address: str) -> tuple[str, str]:
    """Bucket and prefix of an address."""
    bucket, _, prefix = address.removeprefix(SCHEME).rstrip("/").partition("/")
    steps = prefix.split("/")
    right = re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{1,254}", bucket)
    if not address.startswith(SCHEME) or not right or {"", ".", ".."} & set(steps):
        raise ActcacheError(
            f"'{address}' names no store in a bucket, expected s3://BUCKET/STORE.zarr. Correct it."
        )
    return bucket, prefix


def _buffers(parts: Parts) -> "list[bytes | memoryview]":
    """Parts as buffers of bytes, none copied; all of them, since they may be sent again."""
    return [
        part if isinstance(part, bytes) else part.reshape(-1).view(np.uint8).data for part in parts
    ]


def _are_bytes_of(stored: "GetResult", buffers: "Sequence[bytes | memoryview]") -> bool:
    """Whether an object holds the bytes of these buffers."""
    if stored.meta["size"] != sum(len(buffer) for buffer in buffers):
        return False
    raw, start = memoryview(stored.bytes()), 0
    for buffer in buffers:
        stop = start + len(buffer)
        if raw[start:stop] != buffer:
            return False
        start = stop
    return True


def _unquoted(etag: str | None) -> str:
    return (etag or "").strip('"')


def _release_nothing() -> None:
    """Release the lock that a bucket does not have."""


def _in_order(work: Callable[[A], B], items: Sequence[A]) -> Iterator[B]:
    """Do work with several threads; its results in order, and only so many ahead as are read."""
    waiting: deque[Future[B]] = deque()
    with ThreadPoolExecutor(N_THREADS) as pool:
        try:
            for item in items:
                if len(waiting) == 2 * N_THREADS:
                    yield waiting.popleft().result()
                waiting.append(pool.submit(work, item))
            while waiting:
                yield waiting.popleft().result()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
