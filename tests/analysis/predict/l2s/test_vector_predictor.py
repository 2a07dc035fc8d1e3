"""L2S networks: stacks against one at a time in PyTorch, coordinates, choice, files, refusals."""

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from actcache.analysis.predict.l2s import tanh_stack as vector_training
from actcache.analysis.predict.l2s import train_vectors as vector_choice
from actcache.analysis.predict.l2s.settings import L2SSettings, default_context_layers
from actcache.analysis.predict.l2s.tanh_stack import Weights, fill_gradients, outputs, train_stack
from actcache.analysis.predict.l2s.vector_predictor import VectorPredictor, train_vector_predictor
from actcache.errors import (
    ActcacheError,
    FormatError,
    MismatchError,
    NotFiniteError,
    StoreNotFoundError,
)
from actcache.store.schema import RowArray
from actcache.store.store import open_store
from actcache.store.writing.contents import StoreContents
from actcache.store.writing.writer import Writer
from tests.reference import predict as reference
from tests.support.processes import run_code

FAST: dict[str, Any] = {"hidden": 6, "epochs": 12, "batch": 8, "check_every": 5}


def stack(rng, *, k=3, n=21, held=5, r=4, s=7, h=6, dtype=torch.float64):
    """Inputs of `train_stack` at random."""

    def draw(*shape):
        return torch.tensor(rng.normal(size=shape), dtype=dtype)

    first = Weights(encoder=draw(k, h, r), bias=draw(k, h), decoder=draw(k, h, s) / 3)
    given: dict[str, Any] = {
        "held_contexts": draw(held, r),
        "held_targets": draw(k, held, s),
        "first": first,
    }
    units = torch.tensor(rng.uniform(0.5, 3, k), dtype=dtype)
    return (draw(n, r), draw(k, n, s)), {**given, "units": units}


def residuals(rng, *, n=34, d=40, layers=4):
    """Targets and contexts `[layer, n, d_model]`; contexts and the last targets are of small rank."""
    contexts = rng.normal(size=(layers, n, 9)) @ rng.normal(size=(layers, 9, d)) + 30 * rng.normal(
        size=d
    )
    targets = (
        np.tanh(contexts[:, :, :8] / 10)
        @ rng.normal(size=(layers, 8, d))
        * np.arange(1, layers + 1)[:, None, None]
    )
    targets += rng.normal(size=targets.shape)  # so that held-out rows leave the train rows' span
    targets[-1] = targets[-1, :, :3] @ rng.normal(size=(3, d))
    return targets.astype(np.float32), contexts.astype(np.float32)


def masks(n, *, n_train=20, n_held=8):
    """The first are train, then a gap, and the last are held out."""
    at = np.arange(n)
    return {"train": at < n_train, "validation": at >= n - n_held}


def fitted(targets, contexts, **changes):
    """All layers of these residuals, trained."""
    asked = {
        "layers": range(len(targets)),
        "context_layers": range(len(contexts)),
        **masks(targets.shape[1]),
        "settings": L2SSettings(**FAST),
        **changes,
    }
    return train_vector_predictor(targets.__getitem__, contexts.__getitem__, **asked)


@pytest.fixture(scope="module")
def made():
    """Residuals, and networks trained on them."""
    targets, contexts = residuals(np.random.default_rng(0))
    options = L2SSettings(**FAST, components=(4, 512), rates=(1e-3, 1e-2), seed=5)
    return targets, contexts, fitted(targets, contexts, settings=options)


@pytest.mark.parametrize("loss", ["paper", "code"])
@pytest.mark.parametrize(("n", "batch", "seed"), [(21, 8, 0), (16, 8, 1), (5, 64, 2)])
def test_a_stack_ends_as_each_network_does_alone_in_pytorch(loss, n, batch, seed):
    (c, z), given = stack(np.random.default_rng(seed), n=n)
    how: dict[str, Any] = {
        "loss": loss,
        "epochs": 13,
        "batch": batch,
        "check_every": 5,
        "seed": seed,
    }

    rates = [0.02, 0.005]

    trained = train_stack(c, z, **given, **how, rates=rates)

    first = given["first"]
    for rate, networks, i in (
        (*pair, i) for pair in zip(rates, trained, strict=True) for i in range(3)
    ):
        error, epoch, weights = reference.l2s_alone(
            c,
            z[i],
            given["held_contexts"],
            given["held_targets"][i],
            encoder=first.encoder[i],
            bias=first.bias[i],
            decoder=first.decoder[i],
            unit=float(given["units"][i]),
            rate=rate,
            **how,
        )
        assert int(networks.epoch[i]) == epoch
        np.testing.assert_allclose(networks.error[i], error, rtol=1e-9)
        stacked = networks.weights
        of_network = (stacked.encoder[i], stacked.bias[i], stacked.decoder[i].T)
        for value, true in zip(of_network, weights, strict=True):
            torch.testing.assert_close(value, true, rtol=1e-7, atol=1e-9)


def test_in_float32_a_stacks_losses_are_those_of_each_network_alone():
    (c, z), given = stack(np.random.default_rng(3), dtype=torch.float32)
    (wide_c, wide_z), wide_given = stack(np.random.default_rng(3))
    how: dict[str, Any] = {"rates": [0.003], "epochs": 20, "batch": 8}

    [trained] = train_stack(c, z, **given, **how)
    [true] = train_stack(wide_c, wide_z, **wide_given, **how)

    np.testing.assert_allclose(trained.error, true.error, rtol=1e-4)  # float32 over 60 steps


@pytest.mark.parametrize("loss", ["paper", "code"])
def test_slopes_are_those_of_autograd(loss):
    (c, z), given = stack(np.random.default_rng(4), n=9)
    weights, units = given["first"], given["units"]
    empty = Weights(*map(torch.empty_like, weights))

    fill_gradients(empty, weights, c, z, loss=loss, units=units, share=0.03)

    leaves = [w.clone().requires_grad_() for w in weights]
    h = torch.tanh(torch.einsum("khr,nr->knh", leaves[0], c) + leaves[1][:, None])
    predicted = torch.einsum("knh,khs->kns", h, leaves[2])
    torch.testing.assert_close(outputs(weights, c), predicted.detach(), rtol=1e-12, atol=1e-12)
    total = sum(
        reference.l2s_loss(predicted[i], z[i], loss=loss, unit=units[i], epoch=30) for i in range(3)
    )
    total.backward()
    for value, leaf in zip(empty, leaves, strict=True):
        torch.testing.assert_close(value, leaf.grad, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("loss", ["paper", "code"])
def test_all_losses_and_the_choice_are_those_of_the_plain_loop(loss):
    targets, contexts = residuals(np.random.default_rng(1))
    options = L2SSettings(**FAST, loss=loss, components=(4, 512), rates=(1e-3, 1e-2), seed=3)
    split = masks(targets.shape[1])
    train, held = (np.flatnonzero(rows) for rows in split.values())

    predictor = fitted(targets, contexts, settings=options, layers=(1, 3), context_layers=(0, 2))

    directions = predictor.directions(contexts.__getitem__)
    for i, layer in enumerate((1, 3)):
        z = targets[layer].astype(np.float64)
        table, networks = np.empty((2, 2, 2)), {}
        for at in np.ndindex(2, 2, 2):
            i_context, i_component, i_rate = at
            context_layer = (0, 2)[i_context]
            networks[at] = reference.l2s_network(
                z,
                contexts[context_layer].astype(np.float64),
                train=train,
                held=held,
                layer=layer,
                context_layer=context_layer,
                count=options.components[i_component],
                rate=options.rates[i_rate],
                settings=options,
            )
            table[at] = networks[at][0]
        np.testing.assert_allclose(predictor.losses[i], table, rtol=1e-3)  # float32 over 36 steps
        best = tuple(int(x) for x in np.unravel_index(table.argmin(), table.shape))
        assert predictor.context_layer[i] == (0, 2)[best[0]]
        assert predictor.components[i] == options.components[best[1]]
        assert predictor.rate[i] == options.rates[best[2]]
        loss_there, epoch, predict = networks[best]
        assert predictor.epoch[i] == epoch
        np.testing.assert_allclose(predictor.validation_loss[i], loss_there, rtol=1e-3)
        mean = z[train].mean(0)
        np.testing.assert_allclose(
            predictor.mean_loss[i], np.mean([((z[j] - mean) ** 2).sum() for j in held]), rtol=1e-9
        )
        for j in held:
            true = predict(contexts[(0, 2)[best[0]], j].astype(np.float64))
            np.testing.assert_allclose(
                directions[j, i], true, rtol=2e-2, atol=2e-3 * np.abs(z).max()
            )


def test_the_validation_loss_is_the_squared_distance_of_target_and_direction(made):
    targets, contexts, predictor = made
    held = masks(targets.shape[1])["validation"]

    directions = predictor.directions(lambda layer: contexts[layer][held])

    assert directions.dtype == np.float32
    true = ((directions - targets[:, held].transpose(1, 0, 2)) ** 2).sum(2).mean(0)
    np.testing.assert_allclose(
        predictor.validation_loss, true, rtol=1e-4
    )  # float32 of means 30 times as large
    np.testing.assert_array_equal(predictor.validation_loss, predictor.losses.min((1, 2, 3)))


def test_directions_are_the_networks_formula_and_accept_half_precision(made):
    _, contexts, predictor = made
    half = contexts[:, :3].astype(np.float16)

    directions = predictor.directions(dict(enumerate(half)))

    for i in range(len(predictor.layers)):
        for j in range(3):
            c = half[predictor.context_layer[i], j].astype(np.float64)
            h = np.tanh(predictor.encoder[i] @ c + predictor.bias[i])
            np.testing.assert_allclose(
                directions[j, i], predictor.decoder[i].T @ h, rtol=1e-3, atol=1e-2
            )


def test_how_many_networks_train_at_once_changes_nothing(made, monkeypatch):
    targets, contexts, whole = made
    monkeypatch.setitem(vector_training.STACK_BYTES, "cpu", 1)

    alone = fitted(targets, contexts, settings=whole.settings)

    np.testing.assert_allclose(alone.losses, whole.losses, rtol=1e-4)  # other sums in float32
    np.testing.assert_array_equal(alone.context_layer, whole.context_layer)
    np.testing.assert_allclose(alone.encoder, whole.encoder, rtol=1e-2, atol=1e-3)


def test_a_layers_networks_are_the_same_whichever_others_are_trained(made):
    targets, contexts, whole = made

    some = fitted(targets, contexts, settings=whole.settings, layers=[2], context_layers=[3, 1])

    np.testing.assert_allclose(some.losses[0], whole.losses[2][[3, 1]], rtol=1e-4)


def test_the_same_seed_gives_the_same_networks_and_another_gives_others(made):
    targets, contexts, first = made

    again = fitted(targets, contexts, settings=first.settings)
    other = fitted(targets, contexts, settings=dataclasses.replace(first.settings, seed=6))

    np.testing.assert_array_equal(again.decoder, first.decoder)
    np.testing.assert_array_equal(again.losses, first.losses)
    assert (other.losses != first.losses).all()


def test_each_layer_is_read_once_and_every_network_is_reported(made):
    targets, contexts, predictor = made
    read: list[tuple[str, int]] = []
    steps: list[int] = []

    def target(layer):
        read.append(("target", layer))
        return targets[layer]

    def context(layer):
        read.append(("context", layer))
        return contexts[layer]

    train_vector_predictor(
        target,
        context,
        layers=[0, 2],
        context_layers=[1, 3],
        **masks(targets.shape[1]),
        settings=predictor.settings,
        on_step=steps.append,
    )

    assert sorted(read) == [("context", 1), ("context", 3), ("target", 0), ("target", 2)]
    assert sum(steps) == 2 * 2 * 2 * 2


def test_components_that_leave_nothing_out_are_trained_once_and_counted_alike(monkeypatch):
    targets, contexts = residuals(np.random.default_rng(2))
    trained = []

    def counted(*data, rates, **how):
        trained.append(rates)
        return train_stack(*data, rates=rates, **how)

    monkeypatch.setattr(vector_choice, "train_stack", counted)

    predictor = fitted(targets, contexts, settings=L2SSettings(**FAST, components=(100, 200)))

    np.testing.assert_array_equal(predictor.losses[:, :, 0], predictor.losses[:, :, 1])
    assert set(predictor.components) == {100}
    assert trained == [L2SSettings().rates] * 4  # one stack a context layer


def test_a_planted_function_is_learnt_and_shuffled_contexts_teach_nothing():
    rng = np.random.default_rng(7)
    n, d = 300, 24
    contexts = rng.normal(size=(1, n, d)).astype(np.float32)
    mixed = np.tanh(contexts[0, :, :4] @ rng.normal(size=(4, 6)))
    targets = (mixed @ rng.normal(size=(6, d)) + 2 * rng.normal(size=d))[None].astype(np.float32)
    asked = {"settings": L2SSettings(), **masks(n, n_train=200, n_held=80)}

    predictor = fitted(targets, contexts, **asked)
    blind = fitted(targets, rng.permutation(contexts, axis=1), **asked)

    assert predictor.validation_loss[0] < 0.2 * predictor.mean_loss[0]
    assert predictor.useful.all()
    assert blind.validation_loss[0] > 0.9 * blind.mean_loss[0]


def test_what_was_saved_is_loaded(made, tmp_path):
    _, contexts, predictor = made
    predictor.save(tmp_path / "n.safetensors")

    loaded = VectorPredictor.load(tmp_path / "n.safetensors")

    for field in dataclasses.fields(predictor):
        saved, read = getattr(predictor, field.name), getattr(loaded, field.name)
        if isinstance(saved, np.ndarray):
            assert saved.dtype == read.dtype
            np.testing.assert_array_equal(read, saved)
        else:
            assert read == saved
    np.testing.assert_array_equal(
        loaded.directions(contexts.__getitem__), predictor.directions(contexts.__getitem__)
    )


def test_saved_networks_are_applied_without_torch(made, tmp_path):
    _, contexts, predictor = made
    predictor.save(tmp_path / "n.safetensors")
    np.save(tmp_path / "c.npy", contexts)
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "import numpy as np\n"
        "from actcache.analysis.predict.l2s.vector_predictor import VectorPredictor\n"
        f"contexts = np.load({str(tmp_path / 'c.npy')!r})\n"
        f"found = VectorPredictor.load({str(tmp_path / 'n.safetensors')!r})\n"
        "print(found.directions(contexts.__getitem__).shape)"
    )
    assert run_code(code).stdout == "(34, 4, 40)\n"


@pytest.fixture(scope="module")
def saved(made, tmp_path_factory):
    path = tmp_path_factory.mktemp("saved") / "n.safetensors"
    made[2].save(path)
    return path.read_bytes()


@given(data=st.data())
@settings(max_examples=60)
def test_a_damaged_file_is_told(saved, tmp_path_factory, data):
    path = tmp_path_factory.mktemp("damaged") / "n.safetensors"
    at = data.draw(st.integers(0, len(saved) - 1) | st.integers(0, 2500))
    if data.draw(st.booleans()):
        broken = saved[:at]
    else:
        broken = saved[:at] + bytes([saved[at] ^ data.draw(st.integers(1, 255))]) + saved[at + 1 :]
    path.write_bytes(broken)

    with pytest.raises(FormatError, match="Train it again"):
        VectorPredictor.load(path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rates": (1e-3,)}, "expected rate 1"),
        ({"hidden": 7}, "expected hidden 7"),
        ({"loss": "other"}, "expected paper, code"),
    ],
)
def test_arrays_that_do_not_fit_the_settings_are_told(made, tmp_path, changes, message):
    predictor = made[2]
    options = dataclasses.replace(predictor.settings)
    for name, value in changes.items():
        object.__setattr__(options, name, value)
    dataclasses.replace(predictor, settings=options).save(tmp_path / "n.safetensors")

    with pytest.raises(FormatError, match=message):
        VectorPredictor.load(tmp_path / "n.safetensors")


def test_a_file_that_is_not_there_or_something_else_is_told(tmp_path):
    from safetensors.numpy import save_file

    save_file({"x": np.zeros(3)}, tmp_path / "x.safetensors")
    with pytest.raises(StoreNotFoundError, match="no vector predictor at"):
        VectorPredictor.load(tmp_path / "none")
    with pytest.raises(FormatError, match="its format is 'None'"):
        VectorPredictor.load(tmp_path / "x.safetensors")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hidden": 0}, "hidden is 0, expected 1 or more"),
        ({"batch": -1}, "batch is -1"),
        ({"rates": ()}, r"rates are \[\]"),
        ({"rates": (0.1, 0.1)}, "each once"),
        ({"components": (0,)}, "above 0"),
        ({"loss": "mse"}, "expected paper, code"),
        ({"seed": -1}, "seed is -1"),
    ],
)
def test_settings_that_cannot_be_used_are_refused(changes, message):
    with pytest.raises(ActcacheError, match=message):
        L2SSettings(**changes)


def test_samples_and_layers_that_cannot_be_used_are_refused(made):
    targets, contexts, _ = made
    n = targets.shape[1]
    none, some = np.zeros(n, bool), masks(n)["train"]
    broken = targets.copy()
    broken[2, 7, 3] = np.nan
    flat = contexts.copy()
    flat[1, :20] = 4

    with pytest.raises(MismatchError, match=r"train holds none of the 34 samples"):
        fitted(targets, contexts, train=none)
    with pytest.raises(MismatchError, match="validation holds none"):
        fitted(targets, contexts, validation=none)
    with pytest.raises(MismatchError, match="none that is in both"):
        fitted(targets, contexts, validation=some)
    with pytest.raises(MismatchError, match=r"layers are \[1, 1\]"):
        fitted(targets, contexts, layers=[1, 1])
    with pytest.raises(MismatchError, match=r"context_layers are \[\]"):
        fitted(targets, contexts, context_layers=[])
    with pytest.raises(NotFiniteError, match="target of sample 7 at layer 2"):
        fitted(broken, contexts)
    with pytest.raises(MismatchError, match=r"contexts of all train samples at layer 1 are equal"):
        fitted(targets, flat)
    with pytest.raises(MismatchError, match=r"contexts of layer 0 have shape \[30, 40\]"):
        fitted(targets, contexts[:, :30])


def test_a_nan_in_a_sample_that_is_neither_train_nor_validation_does_no_harm(made):
    targets, contexts, predictor = made
    broken = targets.copy()
    broken[:, 22] = np.nan

    again = fitted(broken, contexts, settings=predictor.settings)

    np.testing.assert_array_equal(again.losses, predictor.losses)


def test_contexts_of_another_shape_or_layer_are_refused(made):
    _, contexts, predictor = made
    with pytest.raises(MismatchError, match="there are no contexts of layer"):
        predictor.directions({})
    with pytest.raises(MismatchError, match=r"expected \[34, 40\]"):
        predictor.directions(lambda layer: contexts[layer][:, :39])


@pytest.mark.parametrize(
    ("n_layers", "expected"), [(1, [0]), (3, [0, 1, 2]), (32, [0, 4, 9, 13, 18, 22, 27, 31])]
)
def test_default_context_layers_are_about_eight_with_both_ends(n_layers, expected):
    assert default_context_layers(n_layers) == expected


def test_a_store_of_pairs_teaches_what_its_arrays_do(tmp_path):
    targets, contexts = residuals(np.random.default_rng(0))
    n_layers, n, d = targets.shape
    split = ["validation" if i >= 26 else "test" if i >= 20 else "train" for i in range(n)]
    values = {"prompt": contexts, "positive": targets, "negative": np.zeros_like(targets)}
    columns = {"id": [str(i) for i in range(n)], "behavior": ["b"] * n}
    with Writer.create(
        tmp_path / "s.zarr",
        StoreContents(
            kind="residuals",
            n=n,
            arrays=[RowArray(f"resid_post/{name}", n_layers, d, "float32") for name in values],
            columns={**columns, "split": split, "variant": ["base"] * n},
            config={},
            provenance={},
        ),
    ) as writer:
        writer.commit({f"resid_post/{name}": x.transpose(1, 0, 2) for name, x in values.items()})
        writer.finish()
    store = open_store(tmp_path / "s.zarr")
    options = L2SSettings(**FAST, components=(4,), rates=(1e-2,))

    predictor = VectorPredictor.fit(store, rows=store["split"] == "train", settings=options)

    expected = fitted(targets, contexts, settings=options)
    np.testing.assert_array_equal(predictor.losses, expected.losses)
    np.testing.assert_array_equal(predictor.decoder, expected.decoder)
    assert (predictor.n_train, predictor.n_validation) == (20, 8)
    with pytest.raises(MismatchError, match=r"rows have shape \[3\]"):
        VectorPredictor.fit(store, rows=np.ones(3, bool))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_gives_the_same_losses(made):
    targets, contexts, predictor = made

    on_gpu = fitted(targets, contexts, settings=predictor.settings, device="cuda")

    np.testing.assert_allclose(on_gpu.losses, predictor.losses, rtol=1e-3)
