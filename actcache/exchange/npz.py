"""Writes npz and safetensors piece by piece, so that memory holds one piece and not the store.

Neither NumPy nor safetensors can write an array that is not in memory; both formats are a header
and the bytes. Nothing is pickled.
"""

import json
import math
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from actcache.errors import MismatchError
from actcache.exchange.items import TEXT, Export, Item
from actcache.store.storage.atomic import atomic_path

WIDEST_TEXT = 1 << 30
"""Bytes of a text column in npz, at most: each row takes as much as the longest."""

_TYPES = {
    f"{kind}{bits}": f"{letter}{bits}"
    for kind, letter in (("int", "I"), ("uint", "U"), ("float", "F"))
    for bits in (8, 16, 32, 64)
}


def write_npz(path: str | Path, export: Export, *, overwrite: bool = False) -> None:
    """Write an npz file: arrays under their names, what is said of the whole under `about/…`.

    Raises:
        StoreExistsError: something lies there.
        MismatchError: a text column would be absurdly wide.
    """
    with (
        atomic_path(Path(path), overwrite=overwrite) as aside,
        zipfile.ZipFile(aside, "w", zipfile.ZIP_STORED, allowZip64=True) as file,
    ):
        for item in export.items:
            with file.open(zipfile.ZipInfo(f"{item.name}.npy"), "w", force_zip64=True) as member:
                _write_npy(member, item)
        for name, text in export.about.items():
            with file.open(zipfile.ZipInfo(f"about/{name}.npy"), "w", force_zip64=True) as member:
                np.lib.format.write_array(member, np.array(text), allow_pickle=False)


def _write_npy(member: Any, item: Item) -> None:
    if item.dtype == TEXT:
        for values in item.pieces():
            np.lib.format.write_array(member, _fixed_width(item.name, values), allow_pickle=False)
        return
    dtype = np.dtype(item.dtype)
    header: Any = {"descr": dtype.str, "fortran_order": False, "shape": item.shape}
    np.lib.format.write_array_header_2_0(member, header)
    for piece in item.pieces():
        member.write(np.ascontiguousarray(piece, dtype).data)


def _fixed_width(name: str, values: np.ndarray) -> np.ndarray:
    texts = values.tolist()
    longest = max(map(len, texts), default=0) if values.ndim else len(texts)
    if 4 * longest * values.size > WIDEST_TEXT or any(t.endswith("\0") for t in np.ravel(values)):
        raise MismatchError(
            f"the texts of '{name}' are up to {longest} characters long in {values.size} rows, "
            "which npz keeps as wide as the longest and without NULs at the end; expected less. "
            "Export --to hdf5."
        )
    return np.array(texts, np.str_)


def write_safetensors(path: str | Path, export: Export, *, overwrite: bool = False) -> None:
    """Write a safetensors file: numbers as tensors, text columns as JSON in the metadata.

    bfloat16 stays what it is where the items are bits.

    Raises:
        StoreExistsError: something lies there.
        MismatchError: the header would be larger than readers accept.
    """
    numbers = [item for item in export.items if item.dtype != TEXT]
    metadata = dict(export.about)
    for item in export.items:
        if item.dtype == TEXT:
            texts = [text for piece in item.pieces() for text in np.ravel(piece).tolist()]
            metadata[item.name] = json.dumps(texts, ensure_ascii=False)
    header: dict[str, Any] = {"__metadata__": metadata}
    at = 0
    for item in numbers:
        size = math.prod(item.shape) * np.dtype(item.dtype).itemsize
        header[item.name] = {
            "dtype": _type_of(item),
            "shape": list(item.shape),
            "data_offsets": [at, at + size],
        }
        at += size
    raw = json.dumps(header, ensure_ascii=False).encode()
    raw += b" " * (-len(raw) % 8)
    if len(raw) > 100_000_000:
        raise MismatchError(
            f"ids, prompts and other texts take {len(raw)} bytes, but the header of safetensors "
            "may have 100000000 at most. Export --to hdf5."
        )
    with atomic_path(Path(path), overwrite=overwrite) as aside, aside.open("wb") as file:
        file.write(len(raw).to_bytes(8, "little"))
        file.write(raw)
        for item in numbers:
            for piece in item.pieces():
                little = np.dtype(item.dtype).newbyteorder("<")
                file.write(np.ascontiguousarray(piece, little).data)


def _type_of(item: Item) -> str:
    is_bits = item.dtype == "uint16" and item.attributes.get("dtype") == "bfloat16"
    return "BF16" if is_bits else _TYPES[item.dtype]
