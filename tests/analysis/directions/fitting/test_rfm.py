"""RFM in the row space equals xrfm and a dense loop; what it must and must not depend on."""

import logging

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from xrfm.rfm_src import RFM

from actcache.analysis.directions.fitting import rfm
from actcache.analysis.directions.fitting.choice import LayerFit, LayerLabels
from actcache.analysis.directions.fitting.row_space import row_space
from actcache.errors import ActcacheError
from tests.analysis.directions.fitting.rows import cosine, planted
from tests.reference import fitting as reference

NO_PAIRS = np.zeros((0, 2), np.int64)


def layer(d, *, n=30, soft=False, repeated=False, seed=0):
    """Train rows, validation rows and labels of one layer."""
    residuals, y, splits, _ = planted(
        n=n * 5 // 3, n_layers=1, d=d, soft=soft, seed=seed, strength=2
    )
    y = y[:, 0] if soft else y
    train, validation = (residuals[splits[s], 0] for s in ("train", "validation"))
    if repeated:
        train[4:8] = train[:4]
        train[10:12] = train[:2] * 3  # equal only once they have unit norm
    labels = LayerLabels(
        train=y[splits["train"]], validation=y[splits["validation"]], pairs=NO_PAIRS
    )
    return train, validation, labels


def centred(train, again):
    """Rows that the published loop starts from, dense."""
    x = reference.unit_rows(train, train)
    return x / np.linalg.norm(x, axis=1, keepdims=True) if again else x


def iterates(train, y, *, bandwidth, again, basis=None):
    """M₁ … M₉'s top eigenvectors `[9, d]` by the code, in the model's basis."""
    space = row_space(train, train[:0])
    rows = space.centred(unit_rows=True)
    rows = rows.scaled_to_unit() if again else rows
    wide = np.eye(train.shape[1]) if space.basis is None else space.basis
    scale = wide if basis is None else basis @ wide
    tops = rfm.rfm_iterates(
        torch.from_numpy(rows.train)[None, None],
        torch.from_numpy(y)[None],
        [torch.from_numpy(scale)],
        torch.tensor([bandwidth], dtype=torch.float64),
        count=9,
    )
    return np.stack([wide @ top[0, 0].numpy() for top in tops])


def of_xrfm(x, y, bandwidth, count):
    """xrfm's top eigenvector after `count` iterations with the published settings."""
    data = torch.from_numpy(x), torch.from_numpy(y)[:, None]
    model = RFM("l2_high_dim", bandwidth=bandwidth, iters=count, device="cpu", verbose=False)
    model.fit(
        data, data, reg=1e-3, center_grads=True, return_best_params=False, early_stop_rfm=False
    )
    return reference.top_eigenvector(model.M.numpy())


WIDTHS = pytest.mark.parametrize(
    "d", [64, 31, 30, 29, 12], ids=["30 < d", "30 = d - 1", "30 = d", "30 = d + 1", "30 > d"]
)
SETTINGS = pytest.mark.parametrize(
    ("bandwidth", "again"), [(1.0, False), (10.0, True), (100.0, False)]
)


@WIDTHS
@SETTINGS
@pytest.mark.parametrize("rows", ["hard", "soft", "repeated"])
def test_every_iterate_equals_xrfm(d, bandwidth, again, rows):
    # Not soft and repeated: xrfm's distance of equal rows is 1e-8 instead of 0, which unlike labels
    # turn into errors of up to 5e-11. There the dense loop judges.
    train, _, labels = layer(d, soft=rows == "soft", repeated=rows == "repeated")
    directions = iterates(train, labels.train, bandwidth=bandwidth, again=again)
    for count in (1, 3, 9):
        other = of_xrfm(centred(train, again), labels.train, bandwidth, count)
        assert 1 - abs(cosine(directions[count - 1], other)) <= 1e-12


@SETTINGS
@pytest.mark.parametrize("d", [220, 149, 130])
def test_every_iterate_of_many_rows_equals_xrfm(d, bandwidth, again):
    """More rows than are decomposed as a whole: Lanczos, its bound, and factors that get shorter."""
    train, _, labels = layer(d, n=150)
    directions = iterates(train, labels.train, bandwidth=bandwidth, again=again)
    for count in (1, 3, 9):
        other = of_xrfm(centred(train, again), labels.train, bandwidth, count)
        assert 1 - abs(cosine(directions[count - 1], other)) <= 1e-12


@WIDTHS
@SETTINGS
@pytest.mark.parametrize("soft", [False, True], ids=["hard", "soft"])
def test_every_iterate_equals_the_dense_loop_also_where_rows_repeat(d, bandwidth, again, soft):
    train, _, labels = layer(d, repeated=True, soft=soft)
    directions = iterates(train, labels.train, bandwidth=bandwidth, again=again)
    dense = reference.rfm(centred(train, again), labels.train, bandwidth, 9)
    for top, m in zip(directions, dense, strict=True):
        assert 1 - abs(cosine(top, reference.top_eigenvector(m))) <= 1e-12


@WIDTHS
def test_validation_rows_choose_among_all_settings_and_iterates(d):
    train, validation, labels = layer(d)
    [fit] = rfm.fit_rfm([space := row_space(train, validation)], [labels])

    best = {}
    for again, bandwidth in rfm.SETTINGS:
        v = reference.unit_rows(validation, train)
        v = v / np.linalg.norm(v, axis=1, keepdims=True) if again else v
        dense = reference.rfm(centred(train, again), labels.train, bandwidth, 9)
        for count, m in enumerate(dense, start=1):
            u = reference.top_eigenvector(m)
            score = abs(np.corrcoef(v @ u, labels.validation)[0, 1])
            best[bandwidth, again, count] = score, u
    (bandwidth, again, count), (score, u) = max(best.items(), key=lambda entry: entry[1][0])
    assert fit.validation == pytest.approx(score, abs=1e-9)
    assert fit.setting == {"bandwidth": bandwidth, "unit_again": again, "iterate": count}
    assert 1 - abs(cosine(space.direction(fit.weights), u)) <= 1e-12


@pytest.mark.parametrize("factor", [1e-6, 7.3, -2.0, 1e6])
def test_labels_times_any_factor_change_nothing(factor):
    train, validation, labels = layer(64, soft=True)
    space = row_space(train, validation)
    scaled = LayerLabels(
        train=factor * labels.train, validation=factor * labels.validation, pairs=NO_PAIRS
    )
    [plain], [other] = (rfm.fit_rfm([space], [y]) for y in (labels, scaled))

    assert plain.setting == other.setting
    sign = np.sign(plain.weights @ other.weights)  # of an eigenvector: any
    np.testing.assert_allclose(sign * other.weights, plain.weights, atol=1e-9)
    assert other.validation == pytest.approx(plain.validation, abs=1e-9)


def test_an_offset_of_the_labels_changes_the_direction():
    train, _, labels = layer(64)
    plain, shifted = (
        iterates(train, y, bandwidth=10.0, again=False) for y in (labels.train, labels.train + 1)
    )
    assert 1 - abs(cosine(plain[8], shifted[8])) > 1e-6


@pytest.mark.parametrize("d", [64, 20])
def test_rotated_rows_give_the_rotated_direction_with_the_scale_of_the_rotated_basis(d):
    train, _, labels = layer(d)
    rotation = np.linalg.qr(np.random.default_rng(5).standard_normal((d, d)))[0]
    rotated = iterates(train @ rotation.T, labels.train, bandwidth=1.0, again=False)
    same_scale = iterates(train, labels.train, bandwidth=1.0, again=False, basis=rotation)
    own_scale = iterates(train, labels.train, bandwidth=1.0, again=False)

    np.testing.assert_allclose(abs(cosine(rotated, same_scale @ rotation.T)), 1, atol=1e-12)
    # The basis does matter: with the first one's scale, the kernels have other widths.
    assert abs(cosine(rotated, own_scale @ rotation.T)).min() < 1 - 1e-6


def test_the_largest_entry_of_the_first_m_is_looked_for_in_the_basis():
    train, _, labels = layer(64)
    x = centred(train, False)
    rotation = np.linalg.qr(np.random.default_rng(5).standard_normal((64, 64)))[0]
    dense = reference.rfm(x, labels.train, 1.0, 9, scale_basis=rotation)
    directions = iterates(train, labels.train, bandwidth=1.0, again=False, basis=rotation)
    for top, m in zip(directions, dense, strict=True):
        assert 1 - abs(cosine(top, reference.top_eigenvector(m))) <= 1e-12


def test_layers_together_equal_each_alone():
    problems = [
        layer(d, n=n, seed=seed)
        for d, n, seed in ((64, 30, 0), (64, 30, 1), (20, 30, 2), (64, 24, 3), (64, 30, 4))
    ]
    spaces = [row_space(train, validation) for train, validation, _ in problems]
    labels = [y for _, _, y in problems]
    alone = [rfm.fit_rfm([s], [y])[0] for s, y in zip(spaces, labels, strict=True)]
    for at_once in (2, 5):
        together = rfm.fit_rfm(spaces, labels, at_once=at_once)
        for a, b in zip(alone, together, strict=True):
            assert a.setting == b.setting
            np.testing.assert_allclose(a.weights, b.weights, atol=1e-10)


def test_a_batch_beyond_memory_is_halved_and_that_is_said(caplog):
    train, validation, labels = layer(64)
    spaces = [row_space(train, validation)] * 7
    sizes = []

    def fit_batch(batch, batch_labels):
        sizes.append(len(batch))
        if len(batch) > 3:
            raise torch.OutOfMemoryError
        return [
            LayerFit(weights=np.ones(3), setting={}, validation=float(s.d_model)) for s in batch
        ]

    with caplog.at_level(logging.WARNING, logger="actcache"):
        fits = rfm.fit_rfm(spaces, [labels] * 7, at_once=7, fit_batch=fit_batch)

    assert len(fits) == 7
    assert sizes == [7, 3, 3, 1]
    assert caplog.messages == [
        "actcache: the device is out of memory with 7 layers at once; continuing with 3"
    ]


def test_one_layer_beyond_memory_says_what_to_do():
    train, validation, labels = layer(64)

    def fit_batch(batch, batch_labels):
        raise torch.OutOfMemoryError

    with pytest.raises(ActcacheError, match="Use fewer train rows, or hide the GPU"):
        rfm.fit_rfm([row_space(train, validation)], [labels], fit_batch=fit_batch)


class Sizes(TorchDispatchMode):
    """Elements of the largest tensor that an operation gives."""

    largest = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for value in out if isinstance(out, tuple | list) else [out]:
            if isinstance(value, torch.Tensor):
                self.largest = max(self.largest, value.untyped_storage().nbytes() // 8)
        return out


@pytest.mark.slow
def test_no_tensor_is_d_by_d():
    largest = []
    for d in (1000, 2000):
        train, _, labels = layer(d)
        with Sizes() as sizes:
            iterates(train, labels.train, bandwidth=10.0, again=False)
        largest.append(sizes.largest)
    assert largest[0] <= 50 * 1000
    assert largest[1] <= 2.2 * largest[0]  # linear in d


def test_bad_validation_rows_are_never_chosen_and_crash_nothing():
    train, validation, labels = layer(64)
    flat = LayerLabels(train=labels.train, validation=np.ones(len(validation)), pairs=NO_PAIRS)
    [fit] = rfm.fit_rfm([row_space(train, validation)], [flat])
    assert np.isnan(fit.validation)
    assert np.isfinite(fit.weights).all()
