"""HDF5 files as stores: exports that were not changed since, and files of other programs."""

import h5py
import numpy as np
import pytest

from actcache.cli.main import main
from actcache.errors import ActcacheError, FormatError, MismatchError
from actcache.exchange import export, import_store
from actcache.store.store import open_store


@pytest.mark.parametrize(
    "change",
    [
        lambda f: f["resid_post/prompt"].__setitem__((4, 1, 2), 7),
        lambda f: f["prompt"].__setitem__(3, "Another?"),
        lambda f: f.attrs.__setitem__("provenance", "{}"),
    ],
)
def test_a_file_that_was_changed_since_is_refused(store, tmp_path, change):
    export(store, tmp_path / "s.h5", to="hdf5")
    with h5py.File(tmp_path / "s.h5", "r+") as file:
        change(file)

    with pytest.raises(MismatchError, match="Export it again"):
        import_store(tmp_path / "s.h5", tmp_path / "t.zarr")
    assert not list(tmp_path.glob("t.zarr*"))


def test_values_wider_than_bfloat16_are_refused(store, tmp_path):
    export(store, tmp_path / "s.h5", to="hdf5")
    with h5py.File(tmp_path / "s.h5", "r+") as file:
        file["resid_post/fork"][0, 0, 0] = np.float32(1.1)

    with pytest.raises(FormatError, match="wider than bfloat16"):
        import_store(tmp_path / "s.h5", tmp_path / "t.zarr")


def test_a_file_cut_short_or_flipped_never_gives_another_store(store, tmp_path):
    export(store, tmp_path / "s.h5", to="hdf5")
    whole = (tmp_path / "s.h5").read_bytes()
    rng = np.random.default_rng(0)
    right, messages = open_store(store).digest, []
    for trial in range(60):
        raw = bytearray(whole)
        if trial % 3:
            for at in rng.integers(0, len(raw), 3):
                raw[at] ^= 1 << rng.integers(0, 8)
        else:
            raw = raw[: rng.integers(0, len(raw))]
        (tmp_path / "bad.h5").write_bytes(bytes(raw))
        try:
            imported = import_store(tmp_path / "bad.h5", tmp_path / f"{trial}.zarr", overwrite=True)
        except ActcacheError as error:
            messages.append(str(error))
            continue
        assert imported.digest == right
    assert messages
    assert not any("\n" in message for message in messages)


def foreign(path, *, n=20, n_layers=3, label=True, positions=("prompt",)):
    """A file as somebody writes it who has never heard of actcache."""
    rng = np.random.default_rng(0)
    with h5py.File(path, "w") as file:
        for position in positions:
            values = rng.normal(size=(n, n_layers, 8)).astype(np.float32)
            values[: n // 2] += 2.0 * (position != "negative")
            file[f"resid_post/{position}"] = values
        if label:
            file["label"] = [float(i < n // 2) for i in range(n)]
        file["note"] = "something else"
    return path


def test_a_foreign_file_has_vectors_and_layers_but_no_sweep(tmp_path, capsys):
    labels = foreign(tmp_path / "mood.h5")
    pairs = foreign(tmp_path / "pairs.h5", label=False, positions=("positive", "negative"))
    for name in ("mood", "pairs"):
        assert main(["import", str(tmp_path / f"{name}.h5"), "-o", str(tmp_path / name)]) == 0
    store = open_store(tmp_path / "mood")

    assert store["behavior"].tolist() == ["mood"] * 20
    assert set(store["label"].tolist()) == {"1", "0"}
    assert set(store["split"].tolist()) >= {"train", "test"}
    assert store.provenance["imported"]["not_read"] == ["note"]
    with h5py.File(labels) as file:
        np.testing.assert_array_equal(store.resid("prompt")[:], file["resid_post/prompt"][:])
    for name in ("mood", "pairs"):
        done = ["analyze", str(tmp_path / name), "-o", str(tmp_path / f"{name}-out")]
        assert main([*done, "--stages", "vectors,layers", "--draws", "20"]) == 0
    assert main(["info", str(tmp_path / "mood")]) == 0
    capsys.readouterr()
    for command in (
        ["analyze", str(tmp_path / "pairs"), "-o", str(tmp_path / "o"), "--stages", "sweep"],
        ["verify", str(tmp_path / "pairs"), "--recompute", "1"],
    ):
        assert main(command) == 1
        assert "imported without model and tokens" in capsys.readouterr().err
    assert pairs.exists()
