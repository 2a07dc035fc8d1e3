"""Settings: fields of dataclasses that know their help, their words and their flag."""

import json
from collections.abc import Sequence
from dataclasses import MISSING, asdict, dataclass
from typing import Any, Literal

import pytest

from actcache.errors import ActcacheError
from actcache.settings import check_names, check_words, setting, settings_of
from tests.support.processes import run_code

Fruit = Literal["apple", "pear"]


@dataclass(frozen=True, kw_only=True)
class Basket:
    owner: str = setting(help="who carries it")
    fruit: Fruit = setting("apple", help="what is in it", group="contents")
    others: Sequence[Fruit] = setting(("pear",), help="what else")
    rows_of: Sequence[int] | None = setting(None, help="some numbers", metavar="N,N")
    weight: float = setting(1.0, help="in kg")
    full: bool = setting(False, help="no room left")


def test_a_field_says_what_its_flag_takes():
    specs = {spec.name: spec for spec in settings_of(Basket)}

    assert specs["owner"].default is MISSING
    assert specs["rows_of"].flag == "--rows-of"
    assert [(s.type, s.many) for s in specs.values()] == [
        *[(str, False), (Fruit, False), (Fruit, True), (int, True), (float, False), (bool, False)]
    ]
    assert specs["fruit"].words == specs["others"].words == ("apple", "pear")
    assert specs["owner"].words == ()
    assert specs["fruit"].group == "contents"
    assert (specs["rows_of"].metavar, specs["rows_of"].help) == ("N,N", "some numbers")


def test_a_dataclass_of_settings_is_a_plain_dataclass():
    basket = Basket(owner="Eve")

    assert (basket.fruit, basket.others, basket.rows_of) == ("apple", ("pear",), None)
    assert json.dumps(asdict(basket)).startswith('{"owner": "Eve", "fruit": "apple"')
    with pytest.raises(TypeError, match="owner"):
        Basket()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"fruit": "plum"}, "^fruit is 'plum', expected apple, pear. Pass one of them.$"),
        (
            {"others": ["plum"]},
            r"^others are \['plum'\], expected some of apple, pear. Pass them",
        ),
        ({"others": []}, r"^others are \[\], expected some of apple, pear"),
        ({"others": ["pear", "pear"]}, r"^others are \['pear', 'pear'\], expected each once"),
    ],
)
def test_unknown_and_repeated_words_are_refused(change, message):
    values: dict[str, Any] = {"owner": "Eve", **change}

    with pytest.raises(ActcacheError, match=message):
        check_words(Basket(**values), once=["others"])


def test_configs_and_all_parsers_are_made_without_numpy_and_torch():
    run_code(
        """
        import sys
        from actcache.analysis.config import AnalyzeConfig
        from actcache.build.config import BuildConfig
        from actcache.cli.main import main
        BuildConfig(model="m"), AnalyzeConfig(), main(["build", "--help"])
        heavy = {"numpy", "torch", "transformers", "zarr", "h5py", "jaxtyping", "matplotlib"}
        assert not heavy & sys.modules.keys(), heavy & sys.modules.keys()
        """
    )


def test_an_unknown_name_is_refused_with_the_nearest():
    with pytest.raises(ActcacheError, match=r"no setting 'wieght'\. Did you mean 'weight'"):
        check_names(Basket, ["owner", "wieght"])
