"""The settings of steered generation: grids, units, layers, windows."""

import pytest

from actcache.analysis.generation.config import SteerConfig
from actcache.analysis.generation.units import GRIDS, METHODS, UNITS
from actcache.cli.main import parse
from actcache.cli.terminal.options import given_settings
from actcache.errors import ActcacheError
from actcache.settings import settings_of


def test_the_command_line_has_the_defaults_of_the_config():
    assert SteerConfig(**given_settings(parse(["steer", "out", "-o", "gen"]), SteerConfig)) == (
        SteerConfig()
    )


def test_a_command_line_means_its_fields():
    line = "steer out -o gen --strength -1:1:0.5 --layers 3,5:7 --window 0:1 --method ss,caa --end="
    config = SteerConfig(**given_settings(parse(line.split()), SteerConfig))

    assert config.strength == (-1.0, -0.5, 0.0, 0.5, 1.0)
    assert config.layer_numbers == (3, 5, 6)
    assert config.window_steps == (0, 1)
    assert config.method == ("ss", "caa")
    assert config.end == ""


def test_each_setting_has_help_and_a_default_among_its_words():
    for spec in settings_of(SteerConfig):
        assert spec.help, spec.name
        if spec.words and spec.many:
            assert set(spec.default) <= set(spec.words)


def test_each_method_has_a_unit_and_each_unit_a_grid_without_repeats():
    assert set(UNITS) == set(METHODS)
    for unit in UNITS.values():
        assert len(set(GRIDS[unit])) == len(GRIDS[unit]) > 1


@pytest.mark.parametrize("method", METHODS)
def test_a_default_grid_is_of_the_methods_unit(method):
    config = SteerConfig(method=[method])
    config.require_one_unit()
    grid = GRIDS[UNITS[method]]
    SteerConfig(method=[method], strength=grid).require_one_unit()
    wrong = (-1.0, 1.0) if UNITS[method] == "degrees" else (30.0, 90.0)
    with pytest.raises(ActcacheError, match=f"takes .*--unit {UNITS[method]}"):
        SteerConfig(method=[method], strength=wrong).require_one_unit()
    SteerConfig(method=[method], strength=wrong, unit=UNITS[method]).require_one_unit()


@pytest.mark.parametrize("window", ["", "1", "2:2", "3:1", "-1:2", "a:b", ":3"])
def test_what_is_no_window_is_refused(window):
    with pytest.raises(ActcacheError, match="START:STOP"):
        SteerConfig(window=window)


@pytest.mark.parametrize("layers", ["", "x", "1,1", "-1", "3:1", "1:", "fixed,2"])
def test_what_is_no_choice_of_layers_is_refused(layers):
    with pytest.raises(ActcacheError, match="For example fixed"):
        SteerConfig(layers=layers)


def test_what_changes_no_text_is_not_recorded():
    assert SteerConfig().recorded() == SteerConfig(batch_tokens=100).recorded()
    assert SteerConfig().recorded() != SteerConfig(seed=1).recorded()
