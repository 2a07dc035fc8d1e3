"""A condition is the one that tells train prompts apart best, and is decided as the model would."""

import numpy as np
import pytest

from actcache.analysis.generation.methods.conditions import THRESHOLDS, cast, find_condition
from actcache.build.replay import rendered_rows
from actcache.errors import MismatchError
from actcache.steering.prompt_gates import decide_gates
from actcache.store.schema import RowArray
from actcache.store.store import open_store
from tests.analysis.generation.methods.steered import parts
from tests.support.stores import build, example

N, D = 30, 6


def write(path, *, embed=True, mean=True, seed=0, garbage=None):
    """A store of prompts of two kinds that differ in the residual after block 1.

    Rows under `garbage` have values of another size.
    """
    position = "mean" if mean else "prompt"
    arrays = [RowArray(f"resid_post/{position}", 3, D, "float32")]
    if embed:
        arrays.append(RowArray(f"embed/{position}", 1, D, "float32"))
    settings, values = example(n=N, shard_rows=8, seed=seed, arrays=arrays)
    kind = np.arange(N) % 3 == 0
    shift = 1.5 * np.random.default_rng(1).normal(size=D)
    values[f"resid_post/{position}"][:, 1] += (kind[:, None] * shift).astype(np.float32)
    if garbage is not None:
        for array in values.values():
            array[garbage] *= 1e4
    return open_store(build(path, settings, values)), kind


def reference_condition(inputs, positive):
    """Block, threshold, side and F1 by loops; `inputs` are `[sample, d]` by block."""
    best = None
    for layer, h in inputs.items():
        rows = [row.astype(np.float64) for row in h]
        means = [
            sum(r for r, yes in zip(rows, positive, strict=True) if yes == side)
            / sum(yes == side for yes in positive)
            for side in (True, False)
        ]
        c = np.float32(means[0] - means[1]).astype(np.float64)
        c = c / np.sqrt((c * c).sum())
        similarity = []
        for row in rows:
            projected = np.tanh((row * c).sum() * c)
            size = np.sqrt((row * row).sum()) * np.sqrt((projected * projected).sum())
            similarity.append((row * projected).sum() / size)
        for above in (True, False):
            scores = []
            for threshold in THRESHOLDS:
                met = [(s > threshold) if above else (s < threshold) for s in similarity]
                right = sum(m and yes for m, yes in zip(met, positive, strict=True))
                scores.append(2 * right / (sum(met) + sum(positive)))
            top = max(scores)
            if best is None or top > best[3]:
                tied = [t for t, s in zip(THRESHOLDS, scores, strict=True) if s == top]
                best = (layer, tied[len(tied) // 2], above, top)
    return best


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize(("embed", "mean"), [(True, True), (False, False)])
def test_a_condition_equals_its_definition(tmp_path, seed, embed, mean):
    store, kind = write(tmp_path / "s.zarr", embed=embed, mean=mean, seed=seed)
    train = np.arange(N) % 5 > 0
    position = "mean" if mean else "prompt"
    inputs = {0: store.resid(position, site="embed").layer(0)} if embed else {}
    inputs |= {layer: store.resid(position).layer(layer - 1) for layer in (1, 2)}

    condition = find_condition(store, members=kind, train=train)

    layer, threshold, above, f1 = reference_condition(
        {k: h[train] for k, h in inputs.items()}, kind[train].tolist()
    )
    gate = condition.gate
    assert gate.layers == (layer,)
    assert gate.threshold == pytest.approx(threshold)
    assert (gate.above, gate.over) == (above, "mean" if mean else "last")
    assert condition.f1 == pytest.approx(f1)


def test_a_condition_reads_train_rows_alone(tmp_path):
    train = np.arange(N) % 5 > 0
    store, kind = write(tmp_path / "s.zarr")
    garbage, _ = write(tmp_path / "g.zarr", garbage=~train)

    conditions = [
        find_condition(store, members=kind, train=train),
        find_condition(garbage, members=kind ^ ~train, train=train),
    ]

    assert conditions[0].gate.threshold == conditions[1].gate.threshold
    np.testing.assert_array_equal(conditions[0].gate.vectors, conditions[1].gate.vectors)


def test_prompts_of_one_kind_cannot_be_told_apart(tmp_path):
    store, _ = write(tmp_path / "s.zarr")
    rows = np.ones(N, bool)

    with pytest.raises(MismatchError, match=r"30 of 30 train rows .*two or more behaviors"):
        find_condition(store, members=rows, train=rows)
    with pytest.raises(MismatchError, match="0 of 30 train rows"):
        find_condition(store, members=~rows, train=rows)


@pytest.mark.model
def test_rows_of_the_store_are_decided_as_the_model_decides_their_prompts(inputs, store, model):
    candidate = cast(inputs())
    (part,) = parts(candidate)
    rows = np.arange(store.n)
    prompts = [row.prompt for row in rendered_rows(store)]

    met = decide_gates(model, prompts, [part.gate for _ in prompts])

    steered = [candidate.steering(int(row), 0.5) for row in rows]
    np.testing.assert_array_equal([s is not None for s in steered], met)
    assert 0 < met.sum() < len(met)
    kind = store["behavior"] == "kind"
    assert (met == kind).mean() > 0.9  # prompts begin with the behavior's name
    one = next(s for s in steered if s is not None).parts[0]
    assert (one.gate, one.tokens, part.tokens) == (None, "all", "all")
    np.testing.assert_array_equal(one.vectors, part.vectors)
    assert any("held-out rows" in note for note in candidate.notes)


@pytest.mark.model
def test_a_gate_that_passes_all_or_none_is_told_and_predicted_layers_are_refused(inputs):
    notes = cast(inputs()).notes
    passed = notes[0].split(": ")[1].split(" held-out")[0].split(" of ")
    noted = any(note.startswith("its gate passes") for note in notes)
    assert noted == (passed[0] in ("0", passed[1]))
    with pytest.raises(MismatchError, match=r"same ones.*--layers"):
        cast(inputs(layers="predicted"))


@pytest.mark.model
def test_of_labels_the_condition_is_the_positive_one(labelled):
    from actcache.analysis.generation.methods import candidates

    store, out = labelled
    (candidate,) = candidates(out, store, methods=["cast"])

    met = np.array([candidate.steering(row, 1.0) is not None for row in range(store.n)])

    positive, train = store["label"] == out.summary.labels[0], store["split"] == "train"
    right = (met & positive & train).sum()
    f1 = 2 * right / ((met & train).sum() + (positive & train).sum())
    assert f1 == find_condition(store, members=positive, train=train).f1
    assert f1 > 0.8
