"""Reads HDF5 files that somebody else wrote, without trusting what they say of themselves.

Follows hard links only, takes plain numbers and text only, and holds every declared size against
the bytes that are there. What is done with the values is for others. HDF5's own C library parses
the file: what it makes of a file that was crafted against it is beyond this module.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import EllipsisType
from typing import Any, NoReturn

import numpy as np

from actcache.errors import ActcacheError, FormatError
from actcache.store.schema import DOCUMENT_LIMIT

BEST_RATIO = 1032
"""What deflate can make of zeros: a dataset that claims more than this was never filled."""

LARGEST_CHUNK = 1 << 30
"""Bytes of a compressed chunk, at most: HDF5 unpacks a whole one to read a value of it."""


class SafeFile:
    """An HDF5 file that is open for reading. A context manager."""

    def __init__(self, path: str | Path):
        """Open a file.

        Raises:
            FormatError: it is no HDF5 file.
        """
        import h5py

        self.path = Path(path)
        if not self.path.is_file() or not h5py.is_hdf5(self.path):
            raise FormatError(
                f"'{path}' is no HDF5 file, expected one that actcache export --to hdf5 wrote, or "
                "one with residuals as [n, layer, d_model]. Give such a file."
            )
        self.n_bytes = self.path.stat().st_size
        try:
            self._file: Any = h5py.File(self.path, "r")
        except OSError as error:
            self.refuse("the file", f"what HDF5 cannot open ({error})", "a whole file")

    def __enter__(self) -> "SafeFile":
        return self

    def __exit__(self, *_exception: object) -> None:
        self._file.close()

    def refuse(self, name: str, found: str, expected: str) -> NoReturn:
        """Raise the error of a file that holds one thing where another was expected."""
        raise FormatError(
            f"'{self.path}': '{name}' is {found}, expected {expected}. Write it anew as plain "
            "arrays, or leave it out."
        )

    def text(self, name: str) -> str | None:
        """A text attribute of the file, if it is there.

        Raises:
            FormatError: it is something else, or longer than what a store can hold.
        """
        with self.guarded(f"attribute {name}"):
            if name not in self._file.attrs:
                return None
            found = self._file.attrs.get_id(name)
            if found.shape != () or found.get_storage_size() > DOCUMENT_LIMIT:
                self.refuse(f"attribute {name}", "a list", "one text")
            value = self._file.attrs[name]
        if not isinstance(value, str) or len(value) > DOCUMENT_LIMIT:
            self.refuse(f"attribute {name}", "something else", f"text below {DOCUMENT_LIMIT} bytes")
        return value

    def has_attribute(self, name: str) -> bool:
        """Whether the file has an attribute of that name."""
        return name in self._file.attrs

    def names(self) -> Iterator[str]:
        """Datasets of the file and of its groups, one level deep."""
        import h5py

        with self.guarded("the file"):
            for name in self._file:
                if self._kind(self._file, name) is not h5py.Group:
                    yield name
                    continue
                for inner in self._file[name]:
                    if self._kind(self._file[name], inner) is not h5py.Group:
                        yield f"{name}/{inner}"

    def dataset(self, name: str) -> Any:
        """A dataset of plain numbers or text, each step to which is a hard link.

        Raises:
            FormatError: it is not there, leads elsewhere, or claims more than there is.
        """
        import h5py

        at = self._file
        with self.guarded(name):
            for part in name.split("/"):
                if not isinstance(at, h5py.Group) or part not in at:
                    self.refuse(name, "not there", "a dataset")
                self._kind(at, part)
                at = at[part]
            if not isinstance(at, h5py.Dataset):
                self.refuse(name, "a group", "a dataset")
            self._require_plain(name, at)
        return at

    def numbers(self, name: str, rows: slice | EllipsisType = ...) -> np.ndarray:
        """Some rows of a dataset of numbers, or all of it.

        Raises:
            FormatError: it is none, or cannot be read.
        """
        dataset = self.dataset(name)
        if is_text(dataset):
            self.refuse(name, "text", "numbers")
        with self.guarded(name):
            return np.asarray(dataset[rows])

    def mark(self, name: str, attribute: str) -> str | None:
        """A text attribute of a dataset, if it has one."""
        dataset = self.dataset(name)
        with self.guarded(name):
            value = dataset.attrs.get(attribute)
        return value if isinstance(value, str) else None

    @contextmanager
    def guarded(self, name: str) -> Iterator[None]:
        """Say in one line what HDF5 could not make of a damaged file."""
        try:
            yield
        except ActcacheError:
            raise
        except (OSError, RuntimeError, KeyError, TypeError, ValueError, MemoryError) as error:
            self.refuse(name, f"what HDF5 cannot read ({error})", "readable")

    def texts(self, name: str) -> list[str]:
        """All of a text dataset of one dimension.

        Raises:
            FormatError: it is none, or takes more memory than the file has bytes.
        """
        dataset = self.dataset(name)
        if not is_text(dataset) or len(dataset.shape) != 1:
            self.refuse(name, f"{dataset.dtype} {list(dataset.shape)}", "a list of texts")
        # One string of a hostile file may be as long as the file, and many may be the same one.
        step = int(np.clip((1 << 28) // self.n_bytes, 1, 4096))
        found: list[str] = []
        total = 0
        for start in range(0, len(dataset), step):
            with self.guarded(name):
                raw = dataset[start : start + step]
                found += [str(each, "utf-8") for each in raw.tolist()]
            total += sum(map(len, raw.tolist()))
            if total > self.n_bytes:
                self.refuse(name, f"{total} bytes of text", f"at most the file's {self.n_bytes}")
        return found

    def _kind(self, group: Any, name: str) -> Any:
        import h5py

        link = group.get(name, getlink=True)
        if not isinstance(link, h5py.HardLink):
            kind = type(link).__name__
            self.refuse(f"{group.name}/{name}".lstrip("/"), f"a {kind}", "what it holds itself")
        return group.get(name, getclass=True)

    def _require_plain(self, name: str, dataset: Any) -> None:
        if dataset.is_virtual or dataset.external:
            self.refuse(name, "kept in other files", "kept in this one")
        dtype, properties = dataset.dtype, dataset.id.get_create_plist()
        text = is_text(dataset)
        if not text and (dtype.kind not in "biuf" or dtype.itemsize > 8 or dtype.subdtype):
            self.refuse(name, f"of type {dtype}", "numbers or text")
        if dataset.shape is None:
            self.refuse(name, "empty", "an array")
        itemsize = dataset.id.get_type().get_size()
        declared = itemsize
        for size in dataset.shape:
            declared *= int(size)
        stored = dataset.id.get_storage_size()
        ratio = BEST_RATIO if properties.get_nfilters() else 1
        if declared > ratio * min(stored, self.n_bytes):
            self.refuse(
                name,
                f"declared as {list(dataset.shape)} of {itemsize} bytes each, {stored} of which "
                "are there",
                "backed by the file",
            )
        if dataset.chunks and int(np.prod([float(c) for c in dataset.chunks])) * itemsize > (
            LARGEST_CHUNK
        ):
            self.refuse(name, f"in chunks of {list(dataset.chunks)}", "smaller ones")


def is_text(dataset: Any) -> bool:
    """Whether a dataset holds strings."""
    import h5py

    return h5py.check_string_dtype(dataset.dtype) is not None
