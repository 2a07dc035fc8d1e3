"""A run from a steering file to GEN: what is written, killed, resumed, and by which steering."""

import json
import signal
import subprocess
import sys
import time
from collections import defaultdict
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch

import actcache
from actcache import analysis
from actcache.analysis.generation.config import SteerConfig
from actcache.analysis.generation.folder import Generations, open_generations
from actcache.analysis.generation.run.finish import choices_kept
from actcache.analysis.generation.run.source_plan import plan_generation
from actcache.analysis.generation.run.summarize import summarize_texts
from actcache.cli.main import main
from actcache.engine.model import load_model
from actcache.errors import StoreNotFoundError
from actcache.progress import Silent
from actcache.steering import Steering
from tests.reference.steering import reference_generate
from tests.support.chat_server import ChatServer
from tests.support.processes import ROOT
from tests.support.recorder import Recorder

SETTINGS: dict[str, Any] = {"strength": (-2.0, 2.0), "max_new": 6, "draws": 20}


@pytest.fixture(scope="module")
def generations(steering_file, rows_file, tmp_path_factory):
    out = tmp_path_factory.mktemp("gen") / "gen"
    return analysis.generate_steered(steering_file, out, data=[rows_file], **SETTINGS)


@pytest.mark.model
def test_every_row_configuration_and_sample_has_one_line(generations):
    texts = generations.texts()
    keys = {(text.configuration, text.id, text.sample) for text in texts}

    assert len(keys) == len(texts) == 12 * (2 + 2 * 2)
    assert {text.split for text in texts} == {"validation", "test"}
    methods = [about.method for about in generations.configurations.values()]
    assert sorted(set(methods)) == ["file", "random", "unsteered", "unsteered_again"]


@pytest.mark.model
def test_texts_are_those_of_the_reference_loop_under_that_steering(
    generations, steering_file, rows_file, model_folder
):
    hf = load_model(model_folder).hf
    plan = plan_generation(steering_file, SteerConfig(**SETTINGS), data=[rows_file])
    texts = {(text.configuration, text.id): text for text in generations.texts()}
    unsteered = {row.id: _reference(hf, row, None) for row in plan.rows}
    n_changed = 0
    for row, run, _ in plan.texts():
        if run.about.method != "unsteered_again":
            expected = _reference(hf, row, run.steering(row))
            assert texts[run.digest, row.id].tokens == expected
            n_changed += expected != unsteered[row.id]
    assert n_changed > 24


def _reference(hf, row, steering):
    tokens, _ = reference_generate(hf, "llama", row.tokens, steering, steps=6)
    return tuple(tokens[: tokens.index(2)] if 2 in tokens else tokens)


@pytest.mark.model
def test_the_random_control_has_the_norm_of_the_vector_and_changes_texts_too(generations):
    texts = {}
    for text in generations.texts():
        about = generations.configurations[text.configuration]
        texts[about.method, about.strength, text.id] = text.tokens
    ids = {text.id for text in generations.texts()}
    for method in ("file", "random"):
        changed = [texts[method, 2.0, i] != texts["unsteered", None, i] for i in ids]
        assert sum(changed) > len(ids) / 2


@pytest.mark.model
@pytest.mark.long
def test_a_killed_run_is_resumed_to_the_lines_of_an_uninterrupted_one(
    steering_file, rows_file, tmp_path
):
    flags = ["--data", str(rows_file), "--strength", "-2,2", "--max-new", "6"]
    flags += ["--temperature", "1", "--samples", "3", "--batch-tokens", "100", "--draws", "10"]
    command = ["steer", str(steering_file), *flags, "-o"]
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert main([*command, str(whole)]) == 0
    with subprocess.Popen(
        [sys.executable, "-m", "actcache", *command, str(killed)], cwd=ROOT, stderr=subprocess.PIPE
    ) as process:
        lines = killed / "generations.jsonl"
        while not lines.exists() or lines.stat().st_size < 5000:
            assert process.poll() is None, process.stderr
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
    n_before = lines.read_bytes().count(b"\n")
    n_all = (whole / "generations.jsonl").read_bytes().count(b"\n")
    assert 0 < n_before < n_all
    assert not (killed / "summary.json").exists()
    with lines.open("ab") as file:
        file.write(b'{"id": "torn')

    assert main([*command, str(killed), "--resume"]) == 0

    assert [_facts(text) for text in Generations(killed).texts()] == [
        _facts(text) for text in Generations(whole).texts()
    ]
    configurations = (killed / "configurations.json", whole / "configurations.json")
    assert configurations[0].read_bytes() == configurations[1].read_bytes()
    summaries = [json.loads((folder / "summary.json").read_text()) for folder in (killed, whole)]
    assert [m["choice"] and m["choice"]["strength"] for m in summaries[0]["methods"]] == [
        m["choice"] and m["choice"]["strength"] for m in summaries[1]["methods"]
    ]


class _Stops(Silent):
    """A progress that stops the run after some texts, as Ctrl-C does."""

    @contextmanager
    def steps(self, title, total):
        left = 30

        def advance(n):
            nonlocal left
            left -= n
            if left < 0:
                raise KeyboardInterrupt

        yield advance


@pytest.mark.model
def test_a_stopped_run_is_resumed_with_another_batch_size(steering_file, rows_file, tmp_path):
    settings = {**SETTINGS, "temperature": 1.0, "samples": 2}
    run: Any = partial(analysis.generate_steered, steering_file, data=[rows_file], **settings)
    whole = run(tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "stopped", batch_tokens=40, progress=_Stops())
    stopped = Generations(tmp_path / "stopped")
    assert 0 < len(stopped.texts()) < len(whole.texts())
    assert not stopped.complete
    with pytest.raises(StoreNotFoundError, match="--resume"):
        open_generations(stopped.path)

    resumed = run(stopped.path, resume=True)

    assert sorted(map(_facts, resumed.texts())) == sorted(map(_facts, whole.texts()))
    samples = defaultdict[Any, set[Any]](set)
    for text in whole.texts():
        samples[text.configuration, text.id].add(text.tokens)
    assert max(map(len, samples.values())) == 2  # samples differ


def _facts(text):
    """A line but for the last digits of its log-probabilities, which batches may round."""
    numbers = [text.nll_steered, text.nll_unsteered, text.target]
    rounded = [None if number is None else round(number, 3) for number in numbers]
    return text.configuration, text.id, text.sample, text.tokens, text.text, text.ended, rounded


@pytest.mark.model
def test_a_judges_verdicts_are_the_target_and_are_paid_once(
    steering_file, rows_file, tmp_path, monkeypatch
):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    watcher = Recorder()
    ask = tmp_path / "ask.txt"
    ask.write_text("{text} then say 7", encoding="utf-8")
    with ChatServer() as server:
        judged: Any = partial(
            analysis.generate_steered,
            steering_file,
            data=[rows_file],
            target="judge",
            judge="m",
            base_url=server.url,
            judge_prompt=str(ask),
            verdicts=str(tmp_path / "verdicts.sqlite"),
            limit=2,
            **SETTINGS,
        )
        first = judged(tmp_path / "gen", progress=watcher)
        n_asked = len(server.requests)
        again = judged(tmp_path / "again")
        assert len(server.requests) == n_asked
    distinct = {text.text for text in first.texts()}
    assert n_asked == len(distinct)
    assert {text.target for text in first.texts()} == {7.0}
    assert [text.target for text in again.texts()] == [text.target for text in first.texts()]
    assert first.summary.judge == "m, 0 of 24 texts without a verdict"
    [cost] = watcher.costs
    assert "24 new texts for the judge m" in str(cost)


@pytest.mark.model
def test_without_validation_rows_nothing_is_chosen_and_nothing_is_saved(steering_file, tmp_path):
    texts = analysis.generate_steered(
        steering_file, tmp_path / "gen", prompts=["Hi", "Well?"], **SETTINGS
    )
    assert [method.choice for method in texts.summary.methods] == [None, None]
    assert any("validation" in reason for reason in texts.summary.left_out)
    with pytest.raises(StoreNotFoundError, match="no strength was chosen"):
        _ = texts.steering_path


@pytest.mark.model
def test_garbage_on_test_rows_changes_no_choice(generations, steering_file, rows_file):
    config = SteerConfig(**SETTINGS, budget=1e9, form="")
    plan = plan_generation(steering_file, config, data=[rows_file])
    texts = generations.texts()
    [method, _] = summarize_texts(plan, texts, dtype="float32").methods
    assert [len(curve) for curve in method.curves.values()] == [2, 2]
    assert {split: curve[0].n for split, curve in method.curves.items()} == {
        "validation": 4,
        "test": 8,
    }

    rng = np.random.default_rng(0)
    garbled = [  # on validation rows λ -2 is best
        replace(
            text,
            target=float(generations.configurations[text.configuration].strength == -2)
            if text.split == "validation"
            else float(rng.normal()),
            ended=True,
        )
        for text in texts
    ]
    choice: Any = summarize_texts(plan, garbled, dtype="float32").methods[0].choice
    assert choice.strength == -2
    assert choice.validation.effect.value == 1
    assert choice.test.effect.value != 1


@pytest.mark.model
@pytest.mark.parametrize("strength", [0.0, 30.0])
def test_choices_kept_are_those_of_a_loop_on_own_rows_and_on_others(
    steering_file, rows_file, model_folder, strength
):
    model = load_model(model_folder)
    plan = plan_generation(steering_file, SteerConfig(**SETTINGS), data=[rows_file])
    behaviors = ("mood", "manners")
    rows = [replace(row, behavior=behaviors[i % 2]) for i, row in enumerate(plan.rows)]
    plan = replace(plan, rows=tuple(rows))
    tested = [row for row in plan.rows if row.split == "test"]
    steering = Steering.load(steering_file).at(strength)
    way: Any = next(way for way in plan.ways if way.method == "file")
    shares = []
    for behavior in behaviors:
        own_and_others = choices_kept(model, plan, replace(way, behavior=behavior), strength)
        for rows, share in zip(
            (
                [r for r in tested if (r.behavior == behavior) == of_behavior]
                for of_behavior in (True, False)
            ),
            own_and_others,
            strict=True,
        ):
            same = [_likelier(model, r, steering) == _likelier(model, r, None) for r in rows]
            assert share == pytest.approx(np.mean(same))
        shares.append(own_and_others)
    assert (shares == [(1.0, 1.0)] * 2) == (strength == 0)


def _likelier(model, row, steering):
    """The completion with the larger log-probability, token by token in passes of the whole row."""
    scores = []
    for choice in row.choices:
        ids = torch.tensor([[*row.tokens, *choice]])
        with actcache.steer(model, [steering], prompt_width=len(row.tokens)), torch.no_grad():
            logits = model.hf(ids, use_cache=False).logits[0].log_softmax(-1)
        start = len(row.tokens) - 1
        scores.append(sum(float(logits[start + i, token]) for i, token in enumerate(choice)))
    return int(np.argmax(scores))
