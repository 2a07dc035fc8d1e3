"""Flags that are made from dataclasses equal those written by hand before.

`flags.json` was dumped from the parsers and configs of commit 37c1faf: each flag with its default,
choices and type, and what 92 command lines meant. A change here is a change for users.
"""

import argparse
import json
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import pytest

from actcache import conventions
from actcache.analysis.config import AnalyzeConfig
from actcache.build.config import BuildConfig
from actcache.cli import analyze, build
from actcache.cli.main import parse, parser
from actcache.cli.terminal.options import given_settings
from actcache.settings import settings_of

BEFORE = json.loads((Path(__file__).parent / "flags.json").read_text(encoding="utf-8"))


def commands() -> dict[str, argparse.ArgumentParser]:
    [choices] = [a.choices for a in parser()._actions if isinstance(a, argparse._SubParsersAction)]
    return choices


def described(action: argparse.Action) -> dict[str, Any]:
    return {
        "flags": list(action.option_strings),
        "dest": action.dest,
        "nargs": action.nargs,
        "default": action.default,
        "type": getattr(action.type, "__name__", "str") if action.nargs != 0 else None,
        "choices": list(action.choices) if action.choices else None,
        "required": action.required,
        "action": type(action).__name__.strip("_"),
    }


@pytest.mark.parametrize("name", BEFORE["flags"])
def test_each_flag_has_the_default_choices_and_type_that_it_had(name):
    actions = [a for a in commands()[name]._actions if not isinstance(a, argparse._HelpAction)]
    now = {action.dest: described(action) for action in actions}

    assert now == {flag["dest"]: flag for flag in BEFORE["flags"][name]}


def test_no_command_was_removed():
    later = {"steer", "chat", "concepts", "report", "completion"}
    assert [name for name in commands() if name not in later] == list(BEFORE["flags"])


@pytest.mark.parametrize("case", BEFORE["configs"], ids=lambda case: " ".join(case["argv"][-2:]))
def test_a_command_line_means_what_it_meant(case):
    args = parse(case["argv"])
    if args.command == "build":
        config = build.config_of(args).recorded()
    else:
        config = asdict(analyze.config_of(args, preset=case["preset"]))

    expected = BEFORE["defaults"][args.command] | case["changes"]
    assert json.loads(json.dumps(config)) == expected
    assert list(config) == list(expected)  # the store keeps them in this order


@pytest.mark.parametrize(
    ("argv", "config", "set_by_presets"),
    [
        (["build", "DATA", "--model", "M", "-o", "S"], BuildConfig, conventions.BUILD_FIELDS),
        (["analyze", "S"], AnalyzeConfig, {"preset", *conventions.SWEEP_FIELDS}),
    ],
    ids=["build", "analyze"],
)
def test_a_flag_has_no_default_where_a_preset_may_set_the_field(argv, config, set_by_presets):
    given = given_settings(parse(argv), config)

    assert list(given) == [field.name for field in fields(config)]
    for spec in settings_of(config):
        if spec.name in set_by_presets:
            assert given[spec.name] is None, spec.name
        elif spec.name != "model":
            assert given[spec.name] == spec.default, spec.name


def test_the_defaults_of_the_command_line_are_those_of_the_configs():
    assert build.config_of(parse(["build", "DATA", "--model", "M", "-o", "S"])) == BuildConfig(
        model="M"
    )
    assert analyze.config_of(parse(["analyze", "S"]), preset="none") == AnalyzeConfig()


@pytest.mark.parametrize("config", [BuildConfig, AnalyzeConfig])
def test_each_setting_has_help_and_a_default_among_its_words(config):
    for spec in settings_of(config):
        assert spec.help, spec.name
        if spec.words and spec.many:
            assert set(spec.default) <= set(spec.words), spec.name
        elif spec.words:
            assert spec.default in spec.words, spec.name


def test_a_setting_of_several_configs_has_one_default():
    from actcache.analysis.predict.l2s.settings import L2SSettings
    from actcache.analysis.predict.w2s.settings import W2SSettings

    analysis, layers, vectors = AnalyzeConfig(), W2SSettings(), L2SSettings()
    assert (analysis.top, analysis.seeds, analysis.seed) == (layers.top, layers.seeds, layers.seed)
    assert (analysis.loss, analysis.seed) == (vectors.loss, vectors.seed)
