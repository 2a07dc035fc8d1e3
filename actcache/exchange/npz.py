"""Writes npz and safetensors piece by piece, so that memory holds one piece and not the store.

NumPy and safetensors themselves write only arrays that are in memory; both formats are a header and
the bytes. Nothing is pickled.
"""

import json
import math
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from actcache.errors import MismatchError
from actcache.exchange.arrays import TEXT, ExportedArray, ExportedData
from actcache.store.storage.atomic import atomic_path

WIDEST_TEXT = 1 << 30
"""Bytes of a text column in npz at most: each row takes as much as the longest."""

_TYPES = {
    f"{kind}{bits}": f"{letter}{bits}"
    for kind, letter in (("int", "I"), ("uint", "U"), ("float", "F"))
    for bits in (8, 16, 32, 64)
}


def write_npz(path: Path, data: ExportedData, *, overwrite: bool = False) -> None:
    """Write an npz file: arrays under their names, metadata under `about/…`."""
    with (
        atomic_path(path, overwrite=overwrite) as temporary,
        zipfile.ZipFile(temporary, "w", zipfile.ZIP_STORED, allowZip64=True) as file,
    ):
        for array in data.arrays:
            with file.open(zipfile.ZipInfo(f"{array.name}.npy"), "w", force_zip64=True) as member:
                _write_npy(member, array)
        for name, text in data.metadata.items():
            with file.open(zipfile.ZipInfo(f"about/{name}.npy"), "w", force_zip64=True) as member:
                np.lib.format.write_array(member, np.array(text), allow_pickle=False)


def _write_npy(member: Any, array: ExportedArray) -> None:
    if array.dtype == TEXT:
        for values in array.pieces():
            np.lib.format.write_array(member, _fixed_width(array.name, values), allow_pickle=False)
        return
    dtype = np.dtype(array.dtype)
    header: Any = {"descr": dtype.str, "fortran_order": False, "shape": array.shape}
    np.lib.format.write_array_header_2_0(member, header)
    for piece in array.pieces():
        member.write(np.ascontiguousarray(piece, dtype).data)


def _fixed_width(name: str, values: np.ndarray) -> np.ndarray:
    texts = values.tolist()
    longest = max(map(len, texts), default=0) if values.ndim else len(texts)
    if 4 * longest * values.size > WIDEST_TEXT or any(t.endswith("\0") for t in np.ravel(values)):
        raise MismatchError(
            f"the texts of '{name}' are up to {longest} characters long in {values.size} rows, "
            "which npz stores as wide as the longest and without NULs at the end; expected less. "
            "Export --to hdf5."
        )
    return np.array(texts, np.str_)


def write_safetensors(path: Path, data: ExportedData, *, overwrite: bool = False) -> None:
    """Write a safetensors file: numbers as tensors, text columns as JSON in the metadata.

    Arrays of bfloat16 bits become BF16 tensors.
    """
    numbers = [array for array in data.arrays if array.dtype != TEXT]
    metadata = dict(data.metadata)
    for array in data.arrays:
        if array.dtype == TEXT:
            texts = [text for piece in array.pieces() for text in np.ravel(piece).tolist()]
            metadata[array.name] = json.dumps(texts, ensure_ascii=False)
    header: dict[str, Any] = {"__metadata__": metadata}
    end = 0
    for array in numbers:
        size = math.prod(array.shape) * np.dtype(array.dtype).itemsize
        header[array.name] = {
            "dtype": _type_of(array),
            "shape": list(array.shape),
            "data_offsets": [end, end + size],
        }
        end += size
    raw = json.dumps(header, ensure_ascii=False).encode()
    raw += b" " * (-len(raw) % 8)
    if len(raw) > 100_000_000:
        raise MismatchError(
            f"ids, prompts and other texts take {len(raw)} bytes, but the header of safetensors "
            "may have 100000000 at most. Export --to hdf5."
        )
    with atomic_path(path, overwrite=overwrite) as temporary, temporary.open("wb") as file:
        file.write(len(raw).to_bytes(8, "little"))
        file.write(raw)
        for array in numbers:
            for piece in array.pieces():
                little = np.dtype(array.dtype).newbyteorder("<")
                file.write(np.ascontiguousarray(piece, little).data)


def _type_of(array: ExportedArray) -> str:
    is_bits = array.dtype == "uint16" and array.attributes.get("dtype") == "bfloat16"
    return "BF16" if is_bits else _TYPES[array.dtype]
