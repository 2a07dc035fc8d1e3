"""Do the benchmarks run, and are their figures what their names say? How fast is not asked here."""

import importlib
import json
from argparse import Namespace
from pathlib import Path

import numpy as np
import pytest

from benchmarks import bench_memory, bench_predictors, bench_rivals, one_stage, rivals
from benchmarks.bench_memory import figures_of, measured, slope
from benchmarks.bench_rivals import largest_relative_error, read_jobs
from benchmarks.models import saved_gpt2, saved_rows
from benchmarks.profiles import kind_of, profile
from benchmarks.rivals import DOES, PACKAGES, make, missing
from benchmarks.turns import in_turns, ratio


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A tiny GPT-2 with one token a word, and rows for it."""
    folder = tmp_path_factory.mktemp("benchmarks")
    saved_gpt2(folder / "model", layers=2, d_model=32, heads=2, vocab=64)
    saved_rows(folder / "rows.jsonl", 20, tokens=12, vocab=64)
    return folder


@pytest.fixture(scope="module")
def jobs(folder):
    args = Namespace(n=10, batch=4, batch_tokens=100, sorted=False)
    model, rows = str(folder / "model"), [str(folder / "rows.jsonl")]
    return read_jobs(Namespace(**vars(args), model=model, data=rows), folder)


def document(capsys):
    return json.loads(capsys.readouterr().out.splitlines()[-1])


@pytest.mark.model
@pytest.mark.parametrize("name", ["build", "sweep"])
def test_runs_on_a_tiny_model_and_leaves_a_trace(name, tmp_path, capsys):
    module = importlib.import_module(f"benchmarks.bench_{name}")

    module.main(["--quick", "--profile", str(tmp_path)])

    shares = [value for key, value in document(capsys).items() if "share of time" in key]
    assert sum(shares) >= 0.99
    [trace] = tmp_path.glob("*.trace.json")
    assert json.loads(trace.read_text(encoding="utf-8"))["traceEvents"]


def test_the_store_is_measured_at_a_small_size(capsys):
    importlib.import_module("benchmarks.bench_store").main(["--quick"])

    assert document(capsys)["write: speed / raw file"] > 0


@pytest.mark.model
def test_the_predictors_are_timed_by_part_and_find_what_was_planted(capsys):
    bench_predictors.main(["--quick"])

    found = document(capsys)
    parts = ("networks of L2S", "sweep of learned vectors", "layer predictors")
    whole = found["in all, seconds"]
    assert 0 < sum(found[f"{part}, seconds"] for part in parts) < whole
    # What lies between the bars is little, so nothing long is left without a name.
    assert found[f"{bench_predictors.REST}, seconds"] < whole / 2
    assert found["loss of L2S over the mean's"] < 1
    assert found["peak resident memory, MB"] > 100


def test_a_planted_store_holds_the_best_layer_in_its_prompts():
    truth = bench_predictors.planted(400, 32)

    again = bench_predictors.planted(400, 32)
    np.testing.assert_array_equal(truth.best, again.best)
    topic = (truth.latent[:, :8] * np.sqrt(np.arange(1, 9))).argmax(1)
    for each in range(8):
        assert len(np.unique(truth.best[topic == each])) == 1
    assert abs(truth.letter.sum()) <= 1
    assert len(np.unique(truth.best)) > 4


@pytest.mark.model
def test_rivals_run_and_those_that_are_not_installed_are_named(capsys):
    bench_rivals.main(["--quick", "--questions", "pairs,sweep"])

    found = document(capsys)
    absent = [way for way in PACKAGES if missing(way)]
    assert found["about"]["not installed"] == absent
    for way in set(DOES) - set(absent) - set(bench_rivals.OURS):
        assert found[f"pairs: {way} / actcache, in memory"] > 0
    if "steering-vectors" not in absent:
        assert found["sweep: largest absolute difference of propensity"] < 1e-5


@pytest.mark.model
@pytest.mark.parametrize("way", [way for way in DOES if way != "plain forwards"])
@pytest.mark.parametrize("name", ["pairs", "prompts"])
# Rivals of one's own environment warn as they like.
@pytest.mark.filterwarnings("default")
def test_each_way_gives_the_residuals_of_the_last_tokens(way, name, jobs):
    if missing(way):
        pytest.skip(f"{way} is not installed: make bench-rivals")
    if (way, name) == ("steering-vectors", "prompts"):
        pytest.skip("steering-vectors takes pairs alone")
    job = jobs[name]

    found = make(way, job)()

    true = np.stack([[alone(job, ids) for ids in side] for side in job.tokens])
    n_right = -1 if way == bench_rivals.POST_NORM else None
    errors = largest_relative_error(found, true)[:n_right]
    np.testing.assert_array_less(errors, 1e-5)  # float32, another order of sums


def alone(job, ids):
    """`[layer, d]` of the last token: one sequence, unpadded, a hook on each block."""
    import torch

    taken = []

    def take(_block, _args, output):
        taken.append((output[0] if isinstance(output, tuple) else output)[0, -1].numpy().copy())

    handles = [block.register_forward_hook(take) for block in job.model.anatomy.blocks]
    with torch.inference_mode():
        job.model.hf(input_ids=torch.tensor([ids]))
    for handle in handles:
        handle.remove()
    return np.stack(taken)


@pytest.mark.model
def test_the_last_layer_of_transformers_is_another_thing(jobs):
    job = jobs["prompts"]
    true = np.stack([[alone(job, ids) for ids in side] for side in job.tokens])

    assert largest_relative_error(make("transformers", job)(), true)[-1] > 0.1


@pytest.mark.model
def test_a_way_that_gives_other_numbers_stops_the_benchmark(monkeypatch):
    wrong = {**rivals._MAKERS, "TransformerBridge": lambda job: lambda: 1.01 * right(job)}

    def right(job):
        return rivals._MAKERS["actcache, in memory"](job)()

    monkeypatch.setattr(rivals, "_MAKERS", {**rivals._MAKERS})
    monkeypatch.setitem(rivals._MAKERS, "TransformerBridge", wrong["TransformerBridge"])
    with pytest.raises(SystemExit, match="TransformerBridge differs from ours"):
        bench_rivals.main(["--quick", "--questions", "prompts"])


@pytest.mark.model
def test_jobs_are_the_same_tokens_in_both_forms(jobs):
    from actcache.engine.model import load_tokenizer

    for name, n_sides in (("pairs", 2), ("prompts", 1)):
        job = jobs[name]
        assert len(job.texts) == len(job.tokens) == n_sides
        tokenizer = load_tokenizer(job.folder)
        for texts, tokens in zip(job.texts, job.tokens, strict=True):
            assert len(texts) == 10
            assert [tuple(tokenizer(text)["input_ids"]) for text in texts] == list(tokens)


@pytest.mark.model
def test_stages_say_what_memory_and_time_they_took(folder, tmp_path, monkeypatch, capsys):
    settings = {
        "model": str(folder / "model"),
        "data": [str(folder / "rows.jsonl")],
        "template": "none",
        "batch_tokens": 200,
        "floor_rows": 4,
        "threads": 1,
        "n": 20,
        "store": str(tmp_path / "20.zarr"),
    }
    for stage in ("build", "sweep"):
        given = json.dumps({**settings, "stage": stage})
        monkeypatch.setattr("sys.argv", ["one_stage", given])
        one_stage.main()
        found = document(capsys)
        assert found["peak"] >= found["floor"] > 0
        assert found["seconds"] > 0
        assert found["shard rows"] == 20
        # 20 rows of about 15 tokens, of 36 bytes each at most, and texts of as many words
        assert 0.003 < found["rows"] < 0.1

    [found] = measured("moments", [20], settings, tmp_path)  # in a process of its own
    # What a child inherits from its parent is not its own: torch alone would be 200 MB.
    assert found["floor"] < 200


def test_an_object_that_is_held_twice_is_counted_once():
    text = "x" * 10_000

    assert 10_000 < one_stage.deep_bytes([text, {"again": text}]) < 11_000
    assert one_stage.deep_bytes([text, {"again": text + "y"}]) > 20_000


def test_memory_is_told_over_the_floor_and_by_a_thousand_rows():
    found = [
        {"floor": 100.0, "peak": 100.0 + n / 100, "floor anonymous": 50.0, "peak anonymous": 53.0}
        | {"rows": n / 1000, "seconds": n / 10, "shard rows": min(n, 512)}
        for n in (250, 1000, 4000)
    ]

    figures = figures_of("build", (250, 1000, 4000), found)

    assert figures["build: resident MB over the floor at n = 1000"] == pytest.approx(10)
    assert figures["build: resident MB a thousand rows"] == pytest.approx(10)
    assert figures["build: anonymous MB a thousand rows"] == pytest.approx(0, abs=1e-9)
    assert figures["build: of these, texts and tokens, MB a thousand rows"] == pytest.approx(1)
    assert figures["build: seconds a row at n = 4000 / at n = 250"] == pytest.approx(1)


def test_the_slope_leaves_out_what_is_smaller_than_a_shard():
    ns, values = (100, 1000, 2000, 4000), (0.0, 50.0, 50.0, 50.0)

    assert slope(ns, values) > 5
    assert slope(ns, values, least=512) == pytest.approx(0, abs=1e-9)
    assert slope((10, 20), (1.0, 2.0), least=512) == pytest.approx(100)


def test_the_memory_benchmark_asks_for_each_stage_and_n(monkeypatch, capsys):
    asked = []

    def pretend(stage, ns, settings, folder):
        asked.append((stage, tuple(ns)))
        assert Path(settings["data"][0]).exists()
        zero = {"floor": 1.0, "peak": 1.0, "floor anonymous": 1.0, "peak anonymous": 1.0}
        return [{**zero, "rows": 0.0, "seconds": 1.0, "shard rows": 8} for _ in ns]

    monkeypatch.setattr(bench_memory, "measured", pretend)
    bench_memory.main(["--quick"])

    assert asked == [(stage, (40, 80)) for stage in ("build", "sweep", "moments")]
    assert document(capsys)["moments: resident MB a thousand rows"] == pytest.approx(0)


def test_turns_throw_the_first_round_away_and_keep_the_order():
    order = []

    took = in_turns({"a": lambda: order.append("a"), "b": lambda: order.append("b")}, repeats=2)

    assert order == ["a", "b"] * 3
    assert {name: len(each) for name, each in took.items()} == {"a": 2, "b": 2}


def test_the_ratio_is_the_median_of_quotients_of_a_round():
    took = {"ours": [1.0, 2.0, 30.0], "other": [2.0, 2.0, 10.0]}

    assert ratio(took, "ours", "other") == 1.0  # of 0.5, 1 and 3


@pytest.mark.parametrize(
    ("operator", "kind"),
    [
        ("aten::addmm", "matrix products"),
        ("aten::bmm", "attention"),
        ("aten::_scaled_dot_product_flash_attention_for_cpu", "attention"),
        ("aten::native_layer_norm", "norms and activations"),
        ("aten::copy_", "copies"),
        ("aten::mul", "elementwise"),
        ("aten::sort", "other"),
    ],
)
def test_operators_are_counted_by_kind(operator, kind):
    assert kind_of(operator) == kind


def test_time_outside_operators_is_told(tmp_path):
    import time

    shares = profile(lambda: time.sleep(0.02), tmp_path, name="Sleep: a while")

    assert shares["Sleep: a while, share of time: outside operators"] > 0.9
    assert (tmp_path / "sleep-a-while.trace.json").exists()
