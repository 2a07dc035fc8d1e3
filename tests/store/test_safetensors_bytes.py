"""Files of tensors: the same contents are the same bytes, and the library reads them."""

import numpy as np
from safetensors import safe_open

from actcache.store.storage.safetensors_bytes import safetensors_bytes
from tests.support.processes import run_code

CODE = """
import hashlib
import numpy as np
from actcache.store.storage.safetensors_bytes import safetensors_bytes
arrays = {name: np.arange(6.0).reshape(2, 3) for name in "cab"}
about = {name: f"{name} ü" for name in ("format", "about", "model", "n", "zeta", "beta")}
print(hashlib.sha256(safetensors_bytes(arrays, about)).hexdigest())
"""


def test_two_processes_write_the_same_bytes():
    first, second = run_code(CODE).stdout, run_code(CODE).stdout
    assert len(first) == 65
    assert first == second


def test_the_library_reads_arrays_and_metadata(tmp_path):
    arrays: dict[str, np.ndarray] = {
        "b/x": np.arange(6, dtype=np.float32).reshape(3, 2).T,  # not contiguous
        "a": np.array([1, -2], np.int64),
        "none": np.zeros((0, 4), np.float16),
    }
    about = {"zeta": 'a "quoted" line\nand ü', "about": "{}"}
    path = tmp_path / "x.safetensors"
    path.write_bytes(safetensors_bytes(arrays, about))
    with safe_open(path, framework="numpy") as file:
        assert file.metadata() == about
        assert set(file.keys()) == set(arrays)
        for name, array in arrays.items():
            np.testing.assert_array_equal(file.get_tensor(name), array)
            assert file.get_tensor(name).dtype == array.dtype


def test_without_metadata_there_is_no_entry(tmp_path):
    path = tmp_path / "x.safetensors"
    path.write_bytes(safetensors_bytes({"a": np.zeros(3)}, {}))
    with safe_open(path, framework="numpy") as file:
        assert not file.metadata()
