"""A run from a steering file to GEN: what is written, killed, resumed, and by which steering."""

import json
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from actcache import analysis
from actcache.analysis.generation.folder import Generations
from actcache.engine.model import load_model
from actcache.errors import ActcacheError, MismatchError
from actcache.steering.steering import Steering
from tests.reference.steering import naive_tokens
from tests.support.processes import ROOT

SETTINGS = {"strength": (-2.0, 2.0), "max_new": 6, "draws": 20}


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
def test_texts_are_those_of_the_naive_loop_under_that_steering(
    generations, steering_file, model_folder
):
    model = load_model(model_folder)
    steering = Steering.load(steering_file)
    prompts = {row["id"]: row["tokens"] for row in _prompts(generations, model_folder)}
    n_changed = 0
    for digest, about in generations.configurations.items():
        if about.method not in ("file", "unsteered"):
            continue
        applied = None if about.strength is None else steering.at(about.strength)
        for text in generations.texts():
            if text.configuration == digest:
                expected = naive_tokens(
                    model, prompts[text.id], applied, max_new=6, end_tokens={2}
                )
                assert text.tokens == expected
                n_changed += about.method == "file"
    assert n_changed == 24


def _prompts(generations, model_folder):
    from actcache.analysis.generation.run.rows import data_rows
    from actcache.analysis.generation.run.sources import steering_source
    from actcache.prompts.render import Rendering

    del generations
    source = steering_source(None, name=model_folder, rendering=Rendering())
    return data_rows, source


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
@pytest.mark.slow
def test_a_killed_run_is_resumed_to_the_lines_of_an_uninterrupted_one(
    steering_file, rows_file, tmp_path
):
    flags = ["--data", str(rows_file), "--strength", "-2,-1,1,2", "--max-new", "6"]
    flags += ["--temperature", "1", "--samples", "3", "--batch-tokens", "100", "--draws", "10"]
    command = [sys.executable, "-m", "actcache", "steer", str(steering_file), *flags, "-o"]
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    subprocess.run([*command, str(whole)], cwd=ROOT, check=True, capture_output=True)
    with subprocess.Popen([*command, str(killed)], cwd=ROOT, stderr=subprocess.PIPE) as process:
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

    subprocess.run([*command, str(killed), "--resume"], cwd=ROOT, check=True, capture_output=True)

    assert [_facts(text) for text in Generations(killed).texts()] == [
        _facts(text) for text in Generations(whole).texts()
    ]
    configurations = (killed / "configurations.json", whole / "configurations.json")
    assert configurations[0].read_bytes() == configurations[1].read_bytes()
    summaries = [json.loads((folder / "summary.json").read_text()) for folder in (killed, whole)]
    assert [m["choice"] and m["choice"]["strength"] for m in summaries[0]["methods"]] == [
        m["choice"] and m["choice"]["strength"] for m in summaries[1]["methods"]
    ]


def _facts(text):
    """A line but for the last digits of its log-probabilities, which batches may round."""
    numbers = [text.nll_steered, text.nll_unsteered, text.target]
    rounded = [None if number is None else round(number, 3) for number in numbers]
    return text.configuration, text.id, text.sample, text.tokens, text.text, text.ended, rounded
