"""Forecasts before a run: counts, estimates from a timed batch, and no files."""

import itertools
import json
import shutil
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from actcache.build.forecast import N_WARM_UP, local_weights, scaled, why_not_loaded
from actcache.cli.main import main
from actcache.engine.batching import batch_cost, plan_batches
from tests.support.tiny import save


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A tiny model, pairs and labelled prompts, and a store of each."""
    folder = tmp_path_factory.mktemp("estimate")
    save(folder / "model")
    letters = ("(A)", "(B)")
    pairs = [
        {"prompt": f"Is it {'x' * i}?", "positive": letters[i % 2], "negative": letters[1 - i % 2]}
        for i in range(20)
    ]
    labels = [{"prompt": f"Do {i}.", "label": "no" if i % 2 else "yes"} for i in range(8)]
    for name, rows in (("pairs", pairs), ("labels", labels)):
        (folder / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
        command = ["build", f"{name}.jsonl", "--model", "model", "-o", f"{name}.zarr"]
        assert (
            main(
                [str(folder / word) if "." in word or word == "model" else word for word in command]
            )
            == 0
        )
    return folder


class Clock:
    """A clock that a test moves by hand."""

    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


@given(
    lengths=st.lists(st.integers(1, 60), min_size=1, max_size=80),
    budget=st.integers(1, 400),
    second=st.floats(1e-6, 5),
)
def test_is_exact_where_time_is_proportional_to_padded_tokens(lengths, budget, second):
    clock = Clock()

    def run(rows):
        clock.now += second * len(rows) * max(lengths[row] for row in rows)

    estimate = scaled(
        lengths, lengths, budget=budget, run=run, place="cpu", loading=0.0, clock=clock
    )

    true = sum(
        second * len(batch) * max(lengths[row] for row in batch)
        for batch in plan_batches(lengths, budget=budget)
    )
    assert estimate.seconds == pytest.approx(true, rel=1e-2)  # three digits are kept


@given(tails=st.lists(st.integers(1, 20), min_size=2, max_size=40), budget=st.integers(60, 400))
def test_is_exact_where_shared_tokens_cost_nothing(tails, budget):
    heads = [(*range(30), *range(100 * i, 100 * i + tail)) for i, tail in enumerate(tails, 1)]
    lengths, clock = [len(head) + 1 for head in heads], Clock()

    def run(rows):
        clock.now += 1e-3 * batch_cost(rows, lengths, heads)

    settings: dict[str, Any] = {"budget": budget, "heads": heads, "run_rows": 16}
    estimate = scaled(lengths, lengths, run=run, place="cpu", loading=0.0, clock=clock, **settings)

    batches = plan_batches(lengths, **settings)
    assert all(len(set(batch // 16)) == 1 for batch in batches)
    true = sum(1e-3 * batch_cost(batch, lengths, heads) for batch in batches)
    assert estimate.seconds == pytest.approx(true, rel=1e-2)  # three digits are kept


def test_the_timed_rows_are_few_where_a_pass_is_slow():
    clock, n_rows = Clock(), []

    def run(rows):
        n_rows.append(len(rows))
        clock.now += 3.0 * len(rows)

    estimate = scaled(
        [5] * 100, [5] * 100, budget=500, run=run, place="cpu", loading=0.0, clock=clock
    )

    assert n_rows == [N_WARM_UP] * 2  # a warm-up, and the one that counts
    assert estimate.seconds == 300


@pytest.mark.model
def test_a_dry_build_estimates_its_time_from_a_timed_batch(folder, tmp_path, capsys):
    command = ["build", str(folder / "pairs.jsonl"), "--model", str(folder / "model"), "--dry-run"]

    assert main([*command, "-o", str(tmp_path / "s.zarr"), "--json"]) == 0

    facts = json.loads(capsys.readouterr().out)
    assert 0 < facts["estimated seconds"] < 60
    assert "took" in facts["estimate"]
    assert not list(tmp_path.iterdir())


@pytest.mark.model
def test_the_slow_engine_is_estimated_as_such(folder, tmp_path, capsys):
    command = ["build", str(folder / "pairs.jsonl"), "--model", str(folder / "model"), "--dry-run"]
    command += ["-o", str(tmp_path / "s.zarr"), "--json"]
    took = []
    for engine in ("torch", "transformer-lens"):
        assert main([*command, "--engine", engine]) == 0
        took.append(json.loads(capsys.readouterr().out)["estimated seconds"])

    assert took[1] > 3 * took[0]


@pytest.mark.model
@pytest.mark.parametrize(
    ("more", "layers", "n_multipliers", "n_sets"),
    [
        ([], [0, 1, 2, 3], 7, 5),  # the behavior's, three of L2S, random
        (["--stages", "sweep"], [0, 1, 2, 3], 7, 2),
        (["--layers", "1,3", "--multipliers=-1,0,1", "--controls", "0"], [1, 3], 3, 4),
        (["--all-rows", "--vectors", "caa"], [0, 1, 2, 3], 7, 2),
    ],
)
def test_a_dry_sweep_counts_what_the_loops_would(
    more, layers, n_multipliers, n_sets, folder, tmp_path, capsys
):
    from actcache.build.replay import rendered_pairs
    from actcache.store.store import open_store

    store = open_store(folder / "pairs.zarr")
    command = ["analyze", str(folder / "pairs.zarr"), "-o", str(tmp_path / "out"), "--dry-run"]

    assert main([*command, "--json", *more]) == 0

    facts = json.loads(capsys.readouterr().out)
    swept = [i for i in range(20) if "--all-rows" in more or store["split"][i] != "validation"]
    cells = list(itertools.product(swept, range(n_sets), layers, range(n_multipliers)))
    whole = 20 * n_sets * len(layers) * n_multipliers
    steered = [cell for cell in cells if cell[3] > 0]  # one multiplier is 0
    runs_through = sum(4 - 1 - layer for _, _, layer, _ in steered)
    rows = rendered_pairs(store)
    lengths = sum(rows[i].length for i in swept)
    assert facts["cells"] == len(cells)
    assert facts["cells saved"] == whole - len(cells)
    assert facts["joined rows"] == len(steered)
    assert facts["token-layers"] == 4 * (lengths - facts["tokens shared"]) + runs_through
    assert facts["full passes that it replaces"] == 2 * len(cells)
    assert facts["bytes of sweep.zarr"] == 4 * whole
    assert facts["rows done"] == 0
    assert facts["estimated seconds"] > 0
    assert not list(tmp_path.iterdir())


@pytest.mark.model
def test_finished_rows_are_not_counted_again(folder, tmp_path, capsys):
    command = ["analyze", str(folder / "pairs.zarr"), "-o", str(tmp_path / "out"), "--json"]
    assert main([*command, "--stages", "sweep", "--draws", "20"]) == 0
    capsys.readouterr()

    assert main([*command, "--dry-run"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert (facts["rows done"], facts["estimated seconds"], facts["passes"]) == (20, 0.0, 0)

    assert main([*command, "--dry-run", "--overwrite"]) == 0
    assert json.loads(capsys.readouterr().out)["rows done"] == 0
    assert (tmp_path / "out" / "sweep.zarr").exists()


@pytest.mark.model
def test_labels_need_no_pass(folder, capsys):
    assert main(["analyze", str(folder / "labels.zarr"), "--dry-run", "--json"]) == 0

    facts = json.loads(capsys.readouterr().out)
    assert facts["passes"] == 0
    assert facts["bytes to read"] == 8 * 4 * 32 * 4  # rows, layers, width, float32


@pytest.mark.model
def test_without_the_weights_the_counts_are_still_printed(folder, tmp_path, capsys):
    store = str(folder / "pairs.zarr")
    command = ["analyze", store, "-o", str(tmp_path / "out"), "--dry-run", "--model", "gone/away"]

    assert main([*command, "--json"]) == 0

    facts = json.loads(capsys.readouterr().out)
    assert facts["estimated seconds"] is None
    assert "not on this machine" in facts["estimate"]
    assert facts["cells"] > 0

    assert main(command) == 0
    assert "estimated seconds" not in capsys.readouterr().out


@pytest.mark.model
def test_a_dry_analysis_of_a_sweep_is_refused_in_words(folder, tmp_path, capsys):
    out = str(tmp_path / "out")
    assert main(["analyze", str(folder / "pairs.zarr"), "-o", out, "--stages", "sweep"]) == 0
    capsys.readouterr()

    assert main(["analyze", f"{out}/sweep.zarr", "--dry-run"]) == 1

    assert "Pass what build wrote" in capsys.readouterr().err


def test_weights_of_which_a_file_is_missing_are_not_local(folder, tmp_path):
    whole = local_weights(str(folder / "model"))
    assert whole == (folder / "model" / "model.safetensors").stat().st_size

    copy = tmp_path / "model"
    shutil.copytree(folder / "model", copy)
    index = {"weight_map": {"a": "model.safetensors", "b": "missing.safetensors"}}
    (copy / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")
    assert local_weights(str(copy)) is None
    assert local_weights("nobody/has-this") is None
    assert local_weights("no id at all") is None


def test_weights_over_the_limit_are_not_loaded(folder):
    assert why_not_loaded(str(folder / "model")) is None

    refusal = why_not_loaded(str(folder / "model"), max_bytes=10)
    assert refusal is not None
    assert "over the" in refusal


def test_the_middle_batch_is_the_one_that_is_timed():
    lengths = [100] * 2 + [10] * 40 + [1] * 5
    seen = []
    scaled(
        lengths,
        lengths,
        budget=200,
        run=lambda rows: seen.append(np.asarray(lengths)[rows]),
        place="cpu",
        loading=0.0,
    )
    for rows in seen:
        np.testing.assert_array_equal(rows, 10)
