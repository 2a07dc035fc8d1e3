"""The results folder: arrays in safetensors and npz, every number in JSON. Nothing half-written.

The one module of the analyses that writes files. Each is written aside and renamed, so whatever
carries its name is whole.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import numpy as np

from actcache.store.storage.atomic import atomic_path


def write_aside(path: Path, write: Callable[[Path], object]) -> None:
    """Let `write` fill a file beside `path`, then rename it."""
    with atomic_path(path) as temporary:
        write(temporary)


def write_json(path: Path, document: Any) -> None:
    """A JSON document; arrays and frozen results become lists and objects."""
    write_text(path, json.dumps(plain(document), indent=2, allow_nan=False) + "\n")


def write_text(path: Path, text: str) -> None:
    """A text file, UTF-8."""
    write_aside(path, lambda aside: aside.write_text(text, encoding="utf-8"))


def write_tensors(
    path: Path, arrays: Mapping[str, np.ndarray], *, about: Mapping[str, str]
) -> None:
    """A safetensors file with text metadata."""
    from safetensors.numpy import save

    kept = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
    # Not `save_file`, which makes files that only their owner can read.
    write_aside(path, lambda aside: aside.write_bytes(save(kept, metadata=dict(about))))


def write_arrays(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """An npz file; strings as fixed-width text, nothing pickled."""
    write_aside(path, lambda aside: np.savez(aside, allow_pickle=False, **arrays))


def plain(value: Any) -> Any:
    """`value` as JSON has it: dataclasses as objects, arrays as lists."""
    if is_dataclass(value) and not isinstance(value, type):
        return {field.name: plain(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, np.ndarray):
        return plain(value.tolist())
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, Mapping):
        return {str(name): plain(each) for name, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(each) for each in value]
    return value
