"""Reads HDF5 files that somebody else wrote, without trusting what they declare.

It follows hard links only, accepts plain numbers and text only, and compares every declared size
with the bytes in the file. HDF5's own C library parses the file; defending it against a file that
was crafted to attack it is beyond this module.
"""

import math
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from types import EllipsisType
from typing import Any, NoReturn

import numpy as np

from actcache.errors import ActcacheError, FormatError
from actcache.store.schema import DOCUMENT_LIMIT
from actcache.store.storage.local import require_backed

BEST_RATIO = 1032
"""Deflate's best compression, reached by zeros: a dataset that declares more was never filled."""

USUAL_BYTES = 64 << 20
"""Bytes that a chunk, or a shard of all arrays, may take in memory however small the file is. HDF5
unpacks a whole chunk to read one value of it."""

USUAL_RATIO = 16
"""How much more than the file they may take beyond that; residuals are packed to a half or so."""

ROW_BYTES = 8
"""Bytes of the file that stand behind a row at least: each becomes a sample in memory."""

_GZIP, _SHUFFLE, _FLETCHER32, _LZF = 1, 2, 3, 32000
_FILTERS = {_GZIP: "gzip", _SHUFFLE: "shuffle", _FLETCHER32: "fletcher32", _LZF: "lzf"}
_LZF_RATIO = 88  # its best: 264 bytes in 3

_TEXT_BYTES = 1 << 28  # memory for texts that are read at a time


class PlainFile:
    """An HDF5 file that is open for reading. A context manager."""

    def __init__(self, path: str | Path):
        import h5py

        self.path = Path(path)
        if not self.path.is_file() or not h5py.is_hdf5(self.path):
            raise FormatError(
                f"'{path}' is not an HDF5 file, expected one that actcache export --to hdf5 wrote, "
                "or one with residuals as [n, layer, d_model]. Pass such a file."
            )
        require_backed(self.path)
        self.n_bytes = self.path.stat().st_size
        self.memory = max(USUAL_BYTES, USUAL_RATIO * self.n_bytes)
        """Bytes that a chunk of it, a column or a shard may take."""
        self._measured: set[str] = set()  # datasets whose chunks were looked at
        with self._damage_refused("the file"):
            self.h5: Any = h5py.File(self.path, "r")

    def __enter__(self) -> "PlainFile":
        return self

    def __exit__(self, *_exception: object) -> None:
        self.h5.close()

    def refuse(self, name: str, actual: str, expected: str) -> NoReturn:
        """Raise the error of a file in which `name` is not as expected."""
        raise FormatError(
            f"'{self.path}': '{name}' is {actual}, expected {expected}. Write it again as plain "
            "arrays, or leave it out."
        )

    @cached_property
    def _links(self) -> dict[str, Any]:
        """Every link by its path; HDF5 enters groups through hard links only."""
        names: list[str] = []
        with self._damage_refused("the file"):
            self.h5.visit_links(names.append)
            return {name: self.h5.get(name, getlink=True) for name in names}

    def names(self) -> list[str]:
        """Names of what the file and its groups hold, one level deep, without the groups."""
        import h5py

        with self._damage_refused("the file"):
            return [
                name
                for name, link in self._links.items()
                if name.count("/") < 2
                and not (
                    isinstance(link, h5py.HardLink)
                    and self.h5.get(name, getclass=True) is h5py.Group
                )
            ]

    def dataset(self, name: str) -> Any:
        """A dataset of plain numbers or text that the file itself holds."""
        import h5py

        link = self._links.get(name)
        if not isinstance(link, h5py.HardLink):
            self.refuse(name, f"a {type(link).__name__}" if link else "missing", "a dataset")
        with self._damage_refused(name):
            dataset = self.h5[name]
            if not isinstance(dataset, h5py.Dataset):
                self.refuse(name, f"a {type(dataset).__name__.lower()}", "a dataset")
            self._require_plain(name, dataset)
        return dataset

    def numbers(self, name: str, rows: slice | EllipsisType = ...) -> np.ndarray:
        """Some rows of a dataset of numbers, or all of it."""
        dataset = self.dataset(name)
        if is_text(dataset):
            self.refuse(name, "text", "numbers")
        if rows is ... and dataset.nbytes > self.memory:
            self.refuse(name, f"a column of {dataset.nbytes} bytes", f"{self.memory} at most")
        with self._damage_refused(name):
            return np.asarray(dataset[rows])

    def require_rows(self, name: str, n: int) -> None:
        """Refuse more rows than the file can stand behind."""
        if n * ROW_BYTES > self.n_bytes:
            self.refuse(name, f"of {n} rows", f"fewer in a file of {self.n_bytes} bytes")

    def texts(self, name: str) -> list[str]:
        """All of a text dataset of one dimension."""
        dataset = self.dataset(name)
        if not is_text(dataset) or len(dataset.shape) != 1:
            self.refuse(name, f"{dataset.dtype} {list(dataset.shape)}", "a list of texts")
        self.require_rows(name, len(dataset))
        # A text of a hostile file may be as long as the file, and all rows may be the same one.
        step = int(np.clip(_TEXT_BYTES // self.n_bytes, 1, 4096))
        texts: list[str] = []
        n_bytes = 0
        for start in range(0, len(dataset), step):
            with self._damage_refused(name):
                raw = dataset[start : start + step].tolist()
                texts += [str(text, "utf-8") for text in raw]
            n_bytes += sum(map(len, raw))
            if n_bytes > self.n_bytes:
                self.refuse(name, f"{n_bytes} bytes of text", f"at most the file's {self.n_bytes}")
        return texts

    def has_attribute(self, name: str) -> bool:
        """Whether the file has an attribute of that name, of any type."""
        with self._damage_refused(f"attribute {name}"):
            return name in self.h5.attrs

    def attribute(self, name: str, *, of: str | None = None) -> str | None:
        """A text attribute of the file, or of a dataset; None if there is none."""
        owner = self.h5 if of is None else self.dataset(of)
        with self._damage_refused(f"attribute {name}"):
            if name not in owner.attrs or owner.attrs.get_id(name).shape != ():
                return None
            value = owner.attrs[name]
        return value if isinstance(value, str) and len(value) <= DOCUMENT_LIMIT else None

    @contextmanager
    def _damage_refused(self, name: str) -> Iterator[None]:
        """Turn what HDF5 raises for a damaged file into one line."""
        try:
            yield
        except ActcacheError:
            raise
        except (OSError, RuntimeError, KeyError, TypeError, ValueError, MemoryError) as error:
            self.refuse(name, f"unreadable for HDF5 ({error})", "a whole file")

    def _require_plain(self, name: str, dataset: Any) -> None:
        if dataset.is_virtual or dataset.external:
            self.refuse(name, "stored in other files", "stored in this one")
        dtype = dataset.dtype
        if not is_text(dataset) and (dtype.kind not in "biuf" or dtype.itemsize > 8):
            self.refuse(name, f"of type {dtype}", "numbers or text")
        if dataset.shape is None:
            self.refuse(name, "empty", "an array")
        itemsize = dataset.id.get_type().get_size()
        declared = math.prod(dataset.shape) * itemsize
        stored = dataset.id.get_storage_size()
        ratio = BEST_RATIO if dataset.id.get_create_plist().get_nfilters() else 1
        if declared > ratio * min(stored, self.n_bytes):
            self.refuse(
                name,
                f"declared as {list(dataset.shape)} of {itemsize} bytes each, {stored} of which "
                "are there",
                "backed by the file",
            )
        if dataset.chunks:
            self._require_small_chunks(name, dataset, math.prod(dataset.chunks) * itemsize)

    def _require_small_chunks(self, name: str, dataset: Any, n_bytes: int) -> None:
        """Refuse chunks that would take more memory than they declare, or than the file backs."""
        if n_bytes > self.memory:
            self.refuse(name, f"in chunks of {list(dataset.chunks)}", "smaller ones")
        plist = dataset.id.get_create_plist()
        filters = [plist.get_filter(number)[0] for number in range(plist.get_nfilters())]
        if unknown := [number for number in filters if number not in _FILTERS]:
            known = ", ".join(_FILTERS.values())
            self.refuse(name, f"packed by HDF5's filter {unknown[0]}", f"packed by {known}")
        if dataset.name in self._measured or not {_GZIP, _LZF} & set(filters):
            return
        if filters[-1:] == [_FLETCHER32]:
            filters.pop()
        for number in range(dataset.id.get_num_chunks()):
            chunk = dataset.id.get_chunk_info(number)
            if BEST_RATIO * chunk.size <= USUAL_BYTES:
                continue
            # HDF5 unpacks as far as the bytes go, whatever the chunk declares.
            unpacked = _LZF_RATIO * chunk.size
            if filters[-1] == _GZIP and _LZF not in filters:
                _, raw = dataset.id.read_direct_chunk(chunk.chunk_offset)
                with self._damage_refused(name):
                    unpacked = len(zlib.decompressobj().decompress(raw, n_bytes + 1))
            if unpacked > max(n_bytes, self.memory if filters[-1] == _LZF else 0):
                self.refuse(name, "packed from more than its chunks hold", "plain arrays")
        self._measured.add(dataset.name)


def is_text(dataset: Any) -> bool:
    """Whether a dataset holds strings."""
    import h5py

    return h5py.check_string_dtype(dataset.dtype) is not None
