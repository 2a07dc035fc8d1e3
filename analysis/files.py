"""Writers of the results folder: each file is whole once it has its name."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from actcache.analysis.documents import plain
from actcache.store.storage.atomic import atomic_path


def write_aside(path: Path, write: Callable[[Path], object]) -> None:
    """Let `write` fill a file beside `path`, then rename it."""
    with atomic_path(path) as temporary:
        write(temporary)


def write_json(path: Path, document: Any) -> None:
    """Write a JSON document; arrays and dataclasses become lists and objects."""
    write_text(path, json.dumps(plain(document), indent=2, allow_nan=False) + "\n")


def write_text(path: Path, text: str) -> None:
    """Write a text file in UTF-8."""
    write_aside(path, lambda aside: aside.write_text(text, encoding="utf-8"))


def write_tensors(
    path: Path, arrays: Mapping[str, np.ndarray], *, about: Mapping[str, str]
) -> None:
    """Write a safetensors file with text metadata."""
    from safetensors.numpy import save

    contiguous = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
    # Not `save_file`, which makes files that only their owner can read.
    write_aside(path, lambda aside: aside.write_bytes(save(contiguous, metadata=dict(about))))


def write_arrays(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Write an npz file; strings as fixed-width text, nothing pickled."""
    write_aside(path, lambda aside: np.savez(aside, allow_pickle=False, **arrays))
