"""Hostile HDF5 files: nothing that they declare is trusted."""

import h5py
import numpy as np
import pytest

from actcache.errors import FormatError
from actcache.exchange import import_store


def external(file):
    file["resid_post/prompt"] = h5py.ExternalLink("other.h5", "/x")


def soft(file):
    file["resid_post/prompt"] = h5py.SoftLink("/x")


def virtual(file):
    layout = h5py.VirtualLayout((4, 2, 3), np.float32)
    layout[:] = h5py.VirtualSource("other.h5", "x", (4, 2, 3))
    file.create_virtual_dataset("resid_post/prompt", layout)


def raw_file(file):
    file.create_dataset(
        "resid_post/prompt", (4, 2, 3), np.float32, external=[("/etc/passwd", 0, 96)]
    )


def absurd(file):
    file.create_dataset(
        "resid_post/prompt", (1 << 40, 1 << 10, 1 << 12), np.float32, chunks=(1, 1, 4096)
    )


def unfilled(file):
    file.create_dataset("resid_post/prompt", (4, 2, 3), np.float32)


def bomb(file):
    file.create_dataset(
        "resid_post/prompt", (1 << 16, 64, 64), np.float32, chunks=(64, 64, 64), compression="gzip"
    )[:64] = 0


def ragged(file):
    file.create_dataset("resid_post/prompt", (4, 2, 3), dtype=h5py.vlen_dtype(np.int32))


def references(file):
    file["x"] = np.zeros((4, 2, 3), np.float32)
    file.create_dataset("resid_post/prompt", (4, 2, 3), dtype=h5py.ref_dtype)


def compound(file):
    file["resid_post/prompt"] = np.zeros((4, 2, 3), dtype=[("a", "f4"), ("b", "f4")])


def same_long_text(file):
    file["resid_post/prompt"] = np.zeros((300, 1, 1), np.float32)
    file.create_dataset("prompt", data=np.array([b"x" * 4000] * 300), compression="gzip")


def wide(file):
    file["resid_post/prompt"] = np.zeros((4, 2, 3), np.float64)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (external, "ExternalLink"),
        (soft, "SoftLink"),
        (virtual, "other files"),
        (raw_file, "other files"),
        (absurd, "of which are there"),
        (unfilled, "of which are there"),
        (bomb, "of which are there"),
        (ragged, "numbers or text"),
        (references, "numbers or text"),
        (compound, "numbers or text"),
        (same_long_text, "bytes of text"),
        (wide, "float32 or float16"),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_a_hostile_file_is_refused_in_one_line(tmp_path, make, message):
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file["x"] = np.zeros((4, 2, 3), np.float32)
    with h5py.File(tmp_path / "bad.h5", "w") as file:
        make(file)

    with pytest.raises(FormatError, match=message):
        import_store(tmp_path / "bad.h5", tmp_path / "t.zarr")
    assert not list(tmp_path.glob("t.zarr*"))


@pytest.mark.parametrize("raw", [b"", b"no file of that kind", b"\x89HDF\r\n\x1a\n" + bytes(100)])
def test_a_file_that_is_not_hdf5_is_refused(tmp_path, raw):
    (tmp_path / "bad.h5").write_bytes(raw)

    with pytest.raises(FormatError, match=r"HDF5"):
        import_store(tmp_path / "bad.h5", tmp_path / "t.zarr")
