"""The data set for torch gives the store's rows, in one process and in workers, forked and spawned."""

import multiprocessing
import os
import pickle

import numpy as np
import pytest
import torch
from torch.utils.data import BatchSampler, DataLoader, RandomSampler, Subset

from actcache.errors import MismatchError
from actcache.store.store import open_store
from actcache.store.torch_dataset import NO_CLASS, ResidualDataset
from actcache.store.writing.contents import StoreContents
from actcache.store.writing.writer import Writer
from tests.support.stores import build, commit_next, example


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    settings, values = example()
    settings["columns"]["letter"] = np.array(["B", "A", "", "A", "B", "A", "A", "", "A", "B", "A"])
    path = build(tmp_path_factory.mktemp("torch") / "a.zarr", settings, values)
    return path, values


def truth(values, position):
    """Residuals `[n, layer, d_model]` as torch has them."""
    stored = torch.from_numpy(values[f"resid_post/{position}"])
    return stored.view(torch.bfloat16) if position == "fork" else stored


@pytest.mark.parametrize("position", ["prompt", "fork"])
@pytest.mark.parametrize("layers", [None, 1, -1, [2, 0]])
@pytest.mark.parametrize("as_stored", [False, True])
def test_gives_the_rows_of_the_store(built, position, layers, as_stored):
    path, values = built
    data = ResidualDataset(path, position=position, layers=layers, as_stored=as_stored)
    expected = truth(values, position)
    expected = expected if layers is None else expected[:, layers]
    if not as_stored:
        expected = expected.float()

    assert len(data) == 11
    for i in (0, 7, -1, np.int64(3)):
        torch.testing.assert_close(data[i], expected[i], rtol=0, atol=0)
    for some in ([9, 0, 4, 0], np.array([10, 1]), torch.tensor([3]), slice(2, 9, 3)):
        torch.testing.assert_close(data[some], expected[some], rtol=0, atol=0)
    together = torch.stack(data.__getitems__([9, 0, 4]))
    torch.testing.assert_close(together, expected[[9, 0, 4]], rtol=0, atol=0)


@pytest.mark.parametrize(("workers", "start"), [(0, None), (2, "fork"), (2, "spawn")])
def test_workers_give_the_same_rows_and_targets(built, workers, start):
    path, values = built
    data = ResidualDataset(path, position="fork", layers=1, target="letter", check=True)
    data[0]  # its files are open before workers begin
    loader = DataLoader(data, batch_size=4, num_workers=workers, multiprocessing_context=start)
    batches = list(loader)

    assert [len(resid) for resid, _ in batches] == [4, 4, 3]
    residuals = torch.cat([resid for resid, _ in batches])
    torch.testing.assert_close(residuals, truth(values, "fork")[:, 1].float(), rtol=0, atol=0)
    assert torch.cat([codes for _, codes in batches]).tolist() == [
        *(1, 0, NO_CLASS, 0, 1, 0, 0, NO_CLASS, 0, 1, 0)
    ]
    assert data.classes == ("A", "B")


def test_a_sampler_of_batches_skips_collation_and_gives_every_row_once(built):
    path, values = built
    data = ResidualDataset(path, position="prompt", target="n_tokens")
    sampler = BatchSampler(RandomSampler(data), 4, drop_last=False)
    batches = list(DataLoader(data, batch_size=None, sampler=sampler))

    rows = torch.cat([counts for _, counts in batches]) // 3
    assert sorted(rows.tolist()) == list(range(11))
    residuals = torch.cat([resid for resid, _ in batches])
    torch.testing.assert_close(residuals, truth(values, "prompt").float()[rows], rtol=0, atol=0)


def test_a_selection_keeps_its_order_and_the_codes_of_the_whole_store(built):
    path, values = built
    store = open_store(path)
    masked = ResidualDataset(
        path, position="prompt", select=store["letter"] == "B", target="letter"
    )
    numbered = ResidualDataset(path, position="prompt", select=[9, -2, 1])

    np.testing.assert_array_equal(masked.rows, [0, 4, 9])
    assert [int(code) for _, code in masked.__getitems__([0, 1, 2])] == [1, 1, 1]
    np.testing.assert_array_equal(numbered.rows, [9, 9, 1])
    expected = truth(values, "prompt").float()[[9, 9, 1]]
    torch.testing.assert_close(numbered[:], expected, rtol=0, atol=0)
    torch.testing.assert_close(next(iter(DataLoader(Subset(numbered, [2])))), expected[2:])


def test_a_batch_owns_its_rows_so_that_changing_it_changes_nothing_else(built):
    path, values = built
    data = ResidualDataset(path, position="fork", as_stored=True)
    data[[1, 2]].zero_()
    data[3].zero_()

    expected = truth(values, "fork")[:4]
    torch.testing.assert_close(data[:4], expected, rtol=0, atol=0)
    assert data[0].untyped_storage().nbytes() == 3 * 4 * 2  # not the shard's


def test_a_pickled_data_set_holds_no_residuals(tmp_path):
    settings, values = example(n=400, shard_rows=100)
    path = build(tmp_path / "a.zarr", settings, values)
    data = ResidualDataset(path, position="fork", select=[3, 4])
    data[:]
    pickled = pickle.dumps(data)

    assert len(pickled) < 1500
    torch.testing.assert_close(pickle.loads(pickled)[:], data[:], rtol=0, atol=0)


def test_a_forked_process_opens_the_files_for_itself(built):
    path, _ = built
    data = ResidualDataset(path, position="prompt")
    of_parent = data._open()[0]
    queue = multiprocessing.get_context("fork").SimpleQueue()
    if (child := os.fork()) == 0:
        of_child = data._open()[0]
        queue.put(of_child is of_parent)
        os._exit(0)
    os.waitpid(child, 0)

    assert queue.get() is False
    assert data._open()[0] is of_parent


def test_a_relative_path_serves_workers_in_other_folders(built, monkeypatch, tmp_path):
    path, _ = built
    monkeypatch.chdir(path.parent)
    data = pickle.loads(pickle.dumps(ResidualDataset(path.name, position="prompt")))
    monkeypatch.chdir(tmp_path)

    assert data[0].shape == (3, 4)


def test_an_interrupted_store_gives_the_rows_it_had_when_opened(tmp_path):
    settings, values = example()
    with Writer.create(tmp_path / "a.zarr", StoreContents(**settings)) as writer:
        commit_next(writer, values)
        data = ResidualDataset(tmp_path / "a.zarr", position="prompt", partial=True)
        commit_next(writer, values)

        assert len(data) == 4
        torch.testing.assert_close(data[:], truth(values, "prompt").float()[:4])


def test_layers_are_chosen_by_number_in_a_store_of_some_layers(tmp_path):
    settings, values = example()
    settings["columns"]["layer"] = np.array([4, 7, 9])
    path = build(tmp_path / "a.zarr", settings, values)
    expected = truth(values, "prompt").float()

    for layers, places in ((7, 1), ([9, 4], [2, 0]), (-1, 2), (None, slice(None))):
        residuals = ResidualDataset(path, position="prompt", layers=layers)[:]
        torch.testing.assert_close(residuals, expected[:, places], rtol=0, atol=0)
    with pytest.raises(IndexError, match=r"\[4, 7, 9\]"):
        ResidualDataset(path, position="prompt", layers=1)
    assert ResidualDataset(path, position="prompt", site="embed", layers=0)[0].shape == (4,)


def test_reading_a_replaced_store_is_refused(tmp_path):
    path = tmp_path / "a.zarr"
    settings, values = example()
    data = ResidualDataset(build(path, settings, values), position="prompt")
    with Writer.create(path, StoreContents(**settings), overwrite=True) as writer:
        while writer.committed < writer.n:
            commit_next(writer, {name: np.zeros_like(array) for name, array in values.items()})
        writer.finish()

    with pytest.raises(MismatchError, match="Make the data set again"):
        data[0]


@pytest.mark.parametrize(
    ("settings", "error", "remedy"),
    [
        ({"position": "negative"}, MismatchError, "resid_post/fork"),
        ({"position": "prompt", "target": "lettre"}, MismatchError, "xpected one of id"),
        ({"position": "prompt", "select": np.ones(3, bool)}, MismatchError, "store's columns"),
        ({"position": "prompt", "select": [11]}, IndexError, "11"),
        ({"position": "prompt", "layers": 3}, IndexError, "3"),
    ],
)
def test_missing_arrays_rows_and_layers_are_refused_at_once(built, settings, error, remedy):
    with pytest.raises(error, match=remedy):
        ResidualDataset(built[0], **settings)
