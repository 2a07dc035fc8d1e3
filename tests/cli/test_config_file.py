"""`--config FILE`: flags win over the file, the file over the defaults, and a run is repeated."""

import json
import tomllib
from dataclasses import asdict

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from actcache.analysis.config import AnalyzeConfig
from actcache.build.config import BuildConfig
from actcache.cli import analyze, build
from actcache.cli.main import main, parse
from actcache.cli.terminal.config_file import toml, write_config
from actcache.store import open_store
from tests.cli.commands import build as run_build
from tests.cli.commands import refused


@pytest.fixture
def file(tmp_path):
    def write(text):
        path = tmp_path / "run.toml"
        path.write_text(text, encoding="utf-8")
        return str(path)

    return write


def of_build(*words):
    return build.config_of(parse(["build", "DATA", "-o", "S", *words]))


def of_analyze(*words):
    return analyze.config_of(parse(["analyze", "S", *words]), preset="none")


def test_the_file_is_between_the_flags_and_the_defaults(file):
    path = file('[build]\nmodel = "m"\nseed = 7\nvariants = ["base", "sys_pos"]\nspace = "add"\n')

    assert of_build("--config", path) == BuildConfig(
        model="m", seed=7, variants=("base", "sys_pos"), space="add"
    )
    for words in (["--seed", "0", "--config", path], [f"--config={path}", "--seed", "0"]):
        assert of_build(*words, "--model", "n") == BuildConfig(
            model="n", variants=("base", "sys_pos"), space="add"
        )


def test_a_file_may_hold_lists_ranges_and_other_commands(file):
    path = file(
        """
        [build]
        model = "m"
        [analyze]
        multipliers = "-1:1:1"
        layers = [1, 2]
        top = 2
        normalize = true
        base-url = "https://host/v1"
        """
    )
    config = of_analyze("--config", path)

    assert config == AnalyzeConfig(
        multipliers=(-1.0, 0.0, 1.0), layers=(1, 2), top=(2,), normalize=True,
        base_url="https://host/v1",
    )  # fmt: skip
    assert of_analyze("--conf", path, "--multipliers", "-2,0").multipliers == (-2.0, 0.0)


def test_a_file_may_hold_flags_that_are_not_settings(file):
    path = file(
        '[build]\nmodel = "m"\nlimit = 3\nsplit = "dev"\nmap = {prompt = "q"}\nreuse = ["a"]\n'
    )
    args = parse(["build", "DATA", "-o", "S", "--config", path])

    assert (args.limit, args.split, args.map, args.reuse) == (3, "dev", "prompt=q", ["a"])
    assert parse(["build", "DATA", "-o", "S", "--config", path, "--reuse", "b"]).reuse == ["a", "b"]


@pytest.mark.parametrize(
    ("text", "named", "remedy"),
    [
        ("[build]\nsede = 3", "sets 'sede' under [build]", "Did you mean 'seed'?"),
        ("[build]\noutput = 'x'", "sets 'output'", "Pass one of"),
        ("[build]\nseed = 'x'", 'seed is "x"', "expected a whole number"),
        ("[build]\nseed = true", "seed is true", "expected a whole number"),
        ("[build]\nskip_bad_rows = 1", "skip_bad_rows is 1", "expected true or false"),
        ("[build]\nspace = 'tow'", "space is 'tow'", "expected one of one, add, none, strip"),
        ("[build]\nreuse = 'x'", 'reuse is "x"', "expected a list of texts"),
        ("[build]\nmodel = 2021-01-01", "model is", "expected text, numbers or a list"),
        ("seed = 3", "sets 'seed' outside of a table", "Write [build] above it"),
        ("[biuld]\nseed = 3", "has [biuld], expected [build]", "Did you mean 'biuld'?"),
        ("", "has nothing, expected [build]", "under [build]"),
        ("[build", "is not TOML", "Correct it"),
        ("[build]\nseed = 1\nseed = 2", "is not TOML", "Correct it"),
        ("[build]\nbatch_tokens = 0", "batch_tokens is 0", "Try --batch-tokens 2048"),
        ("[build]\nvariants = ['up']", "variants are ['up']", "Pass them to --variants"),
    ],
)
def test_a_bad_file_is_refused_in_one_line(file, folder, tmp_path, capsys, text, named, remedy):
    words = ["build", folder / "pairs.jsonl", "--model", folder / "model", "-o", tmp_path / "s"]
    message = refused([*words, "--config", file(text)], capsys)

    assert named in message
    assert remedy in message


def test_a_file_that_is_not_there_or_given_twice_is_refused(file, tmp_path, capsys):
    assert "Check the path" in refused(["analyze", "S", "--config", tmp_path / "no.toml"], capsys)
    path = file("[analyze]\n")
    assert "Pass it once" in refused(["analyze", "S", "--config", path, "--config", path], capsys)


@given(
    st.dictionaries(
        st.sampled_from(["a", "b", "c"]),
        st.one_of(
            st.text(st.characters(exclude_categories=["Cs"])),
            st.integers(-(2**63), 2**63 - 1),
            st.floats(allow_nan=False),
            st.booleans(),
            st.lists(st.one_of(st.integers(0, 9), st.text("a\"'\\\n\x7f\x00é", max_size=4))),
        ),
    )
)
def test_a_written_file_is_read_back(settings):
    assert tomllib.loads(toml("build", settings)) == {"build": settings}


@pytest.mark.parametrize(
    "words",
    [
        ["--model", "m"],
        ["--model", "m", "--preset", "repepo"],
        ["--model", "m", "--preset", "repepo", "--system", ""],
        [
            "--model",
            "m",
            "--preset",
            "caa",
            "--system",
            'Be "brief".\n',
            "--positions",
            "mean,last:2",
        ],
        ["--model", "m", "--limit", "3", "--map", "prompt=q", "--reuse", "old.zarr"],
    ],
)
def test_the_file_of_a_run_gives_its_settings(tmp_path, words):
    args = parse(["build", "DATA", "-o", "S", *words])
    write_config(tmp_path / "s.toml", args, build.config_of(args))
    again = parse(["build", "DATA", "-o", "T", "--config", str(tmp_path / "s.toml")])

    assert asdict(build.config_of(again)) == asdict(build.config_of(args))
    assert (again.limit, again.map, again.reuse) == (args.limit, args.map, [])


def test_a_file_of_the_users_is_left_alone(tmp_path, capsys):
    path = tmp_path / "s.toml"
    path.write_text("[build] # mine\n", encoding="utf-8")
    args = parse(["build", "DATA", "-o", "S", "--model", "m"])
    write_config(path, args, build.config_of(args))

    assert path.read_text(encoding="utf-8") == "[build] # mine\n"
    assert "is a file of yours" in capsys.readouterr().err


@pytest.mark.model
def test_a_build_and_an_analysis_are_repeated_from_their_files(folder, tmp_path):
    first, second = tmp_path / "first.zarr", tmp_path / "second.zarr"
    more = ["--seed", "3", "--positions", "prompt,positive,negative", "--limit", "14"]
    assert run_build(folder, first, *more) == 0
    data = str(folder / "pairs.jsonl")
    config = f"{first}.toml"
    assert main(["build", data, "--config", config, "-o", str(second)]) == 0
    stores = [open_store(path) for path in (first, second)]
    assert stores[0].config == stores[1].config
    assert stores[0].n == 14
    residuals = [store.residuals("prompt")[:] for store in stores]
    np.testing.assert_array_equal(residuals[0], residuals[1])

    out, other = tmp_path / "out", tmp_path / "other"
    words = ["analyze", str(first), "--stages", "vectors", "--draws", "50"]
    assert main([*words, "-o", str(out)]) == 0
    config = str(out / "config.toml")
    assert main(["analyze", str(first), "--config", config, "-o", str(other)]) == 0
    summaries = [json.loads((path / "summary.json").read_text())["config"] for path in (out, other)]
    assert summaries[0] == summaries[1]
    assert summaries[0]["draws"] == 50
    assert (other / "config.toml").read_text() == (out / "config.toml").read_text()
    assert str(tmp_path) not in (out / "config.toml").read_text()
