from typing import Any

import numpy as np
import pytest
import torch

from actcache.analysis.predict.w2s import mlp_stack as classifiers
from actcache.analysis.predict.w2s.mlp_stack import (
    Part,
    Shape,
    batch_orders,
    initial_weights,
    train_classifiers,
)
from tests.reference import predict as reference

RATES, DECAYS = [1e-3, 1e-2, 0.05], [0.0, 0.1, 1.0]


def made(n_rows, seed, *, dtype=torch.float64, n_held_out=7, k=3, p=6, n_outputs=5):
    """A part whose labels follow from its inputs; network i may not choose class i."""
    rng = np.random.default_rng(seed)
    inputs = rng.standard_normal((n_rows + n_held_out, p))
    labels = np.stack([(inputs[:, i] > 0) + 3 * (inputs[:, 0] > 0.5) for i in range(k)])
    allowed = np.ones((k, n_outputs), bool)
    for network in range(k):
        allowed[network, network] = False
        labels[network][labels[network] == network] = (network + 1) % n_outputs
    return Part(
        inputs=torch.tensor(inputs[:n_rows], dtype=dtype),
        labels=torch.tensor(labels[:, :n_rows], dtype=torch.int64),
        allowed=torch.tensor(allowed),
        held_out=torch.tensor(inputs[n_rows:], dtype=dtype),
        seed=seed,
    )


def train(parts, **options):
    given = {"width": 8, "depth": 1, "epochs": (1,), "batch": 8, **options}
    return train_classifiers(parts, rates=RATES, decays=DECAYS, **given)


def alone(part, network, *, width, depth, epochs, batch):
    shape = Shape(
        n_inputs=part.inputs.shape[1], width=width, depth=depth, n_outputs=part.allowed.shape[1]
    )
    return reference.classifier_alone(
        part,
        network,
        start=initial_weights(part.seed, shape),
        orders=batch_orders(part.seed, len(part.inputs)),
        rate=RATES[network],
        decay=DECAYS[network],
        epochs=epochs,
        batch=batch,
    )


@pytest.mark.parametrize("together", [1, 2, 9])
@pytest.mark.parametrize("depth", [1, 2, 3])
def test_each_network_ends_where_pytorch_takes_it_alone(depth, together):
    # Folds of unequal size; a last batch of 12, 13, 1 and 14 rows; the last part has fewer steps.
    parts = [made(44, 1), made(45, 2, n_held_out=6), made(33, 3), made(30, 4)]
    given: dict[str, Any] = {"width": 8, "depth": depth, "epochs": (1, 4, 9), "batch": 16}
    results = train(parts, together=together, **given)
    for part, trained in zip(parts, results, strict=True):
        for network in range(3):
            losses, predicted, weights = alone(part, network, **given)
            np.testing.assert_allclose(trained.loss[:, network], losses, rtol=1e-9)
            np.testing.assert_array_equal(trained.predicted[:, network], torch.stack(predicted))
            for (w, b), (matrix, bias) in zip(weights, trained.weights, strict=True):
                np.testing.assert_allclose(matrix[network], w, rtol=1e-6, atol=1e-9)
                np.testing.assert_allclose(bias[network], b, rtol=1e-6, atol=1e-9)


def test_in_float32_the_losses_agree_to_rounding():
    part = made(300, 4, dtype=torch.float32)
    given: dict[str, Any] = {"width": 16, "depth": 2, "epochs": (5, 20), "batch": 128}
    (trained,) = train([part], **given)
    for network in range(3):
        losses, _, _ = alone(part, network, **given)
        # AdamW divides by the root of small squares, so rounding grows with the steps.
        np.testing.assert_allclose(trained.loss[:, network], losses, rtol=2e-3)


def test_on_a_cpu_small_parts_are_stacked_and_large_ones_stay_in_the_cache(monkeypatch):
    sizes = []

    def classes_of(stack, parts, *rest):
        sizes.append(len(parts))
        return begin(stack, parts, *rest)

    begin = classifiers._Stack.__init__
    monkeypatch.setattr(classifiers._Stack, "__init__", classes_of)
    parts = [made(20, seed) for seed in range(5)]
    # 3 networks of 6·4 + 4 + 4·5 + 5 = 53 weights, with gradients and two moments, in float64
    for room, expected in ((2 * 3 * 53 * 32, [2, 2, 1]), (1, [1] * 5), (1 << 20, [5])):
        sizes.clear()
        monkeypatch.setattr(classifiers, "STACK_BYTES", room)
        train(parts, width=4)
        assert sizes == expected


def test_a_class_that_is_not_allowed_is_never_chosen():
    part = made(60, 5, n_held_out=200)
    (trained,) = train([part], epochs=(1, 30), batch=16)
    for network in range(3):
        assert network not in trained.predicted[:, network]


def test_the_networks_learn():
    part = made(200, 6)
    (trained,) = train([part], width=16, epochs=(1, 60), batch=32)
    assert (trained.loss[1] < 0.6 * trained.loss[0]).all()


def test_first_weights_are_drawn_as_torchs_linear_draws_them():
    shape = Shape(n_inputs=400, width=100, depth=2, n_outputs=50)
    weights = initial_weights(0, shape)
    assert [tuple(w.shape) for w, _ in weights] == [(100, 400), (100, 100), (50, 100)]
    for matrix, bias in weights:
        bound = matrix.shape[1] ** -0.5
        assert 0.98 * bound < float(matrix.abs().max()) <= bound
        assert float(bias.abs().max()) <= bound
    assert not torch.equal(weights[1][0][:50], weights[2][0])


def test_every_epoch_has_an_order_of_its_own():
    orders, again = batch_orders(3, 50), batch_orders(3, 50)
    one, two = next(orders), next(orders)
    torch.testing.assert_close(one.sort().values, torch.arange(50))
    assert not torch.equal(one, two)
    assert torch.equal(one, next(again))
    assert not torch.equal(one, next(batch_orders(4, 50)))


def test_all_networks_are_counted():
    done: list[int] = []
    train([made(20, 1), made(20, 2)], on_part=done.append)
    assert sum(done) == 6
