"""What analyze refuses before anything runs, what it says is ignored, and what it never records."""

import json
from typing import Any

import pytest

from actcache.analysis.checks import check_analysis
from actcache.analysis.config import AnalyzeConfig
from actcache.analysis.files import plain, typed
from actcache.analysis.results import open_results
from actcache.cli.main import main
from actcache.errors import ActcacheError, MismatchError
from actcache.prompts.render import PARTS
from actcache.store.schema import Ragged, RowArray
from actcache.store.store import open_store
from tests.support.stores import build, example

SECRET = "hunter2-and-more"
ADDRESSES = [
    f"https://user:{SECRET}@host/v1",
    f"https://{SECRET}@host/v1",
    f"https://host/v1?key={SECRET}",
    f"https://host/v1#{SECRET}",
    f"https://host/sk-{SECRET}/v1",
    f"{SECRET}",
]


def pairs(path, **columns):
    """A store of eleven pairs that no model ran."""
    positions = ("prompt", "positive", "negative")
    settings, values = example(
        arrays=[RowArray(f"resid_post/{position}", 3, 4, "float32") for position in positions]
    )
    settings["columns"] |= {
        "label": [""] * 11,
        "split": ["train", "test"] * 5 + ["validation"],
        **dict.fromkeys(("variant",), ["base"] * 11),
        **{f"{part}_tokens": Ragged.of([[1]] * 11) for part in PARTS},
        **columns,
    }
    settings["provenance"]["model"]["name"] = "tiny"
    return open_store(build(path / "s.zarr", settings, values))


@pytest.mark.parametrize("address", ADDRESSES)
def test_a_secret_in_an_address_is_refused_wherever_it_is_given_and_not_repeated(
    address, tmp_path, monkeypatch, capsys
):
    with pytest.raises(ActcacheError, match="OPENAI_API_KEY") as caught:
        AnalyzeConfig(base_url=address)
    assert SECRET not in str(caught.value)

    store = pairs(tmp_path)
    out = tmp_path / "out"
    words = ["analyze", str(store.path), "-o", str(out), "--stages", "vectors", "--json"]
    assert main([*words, "--base-url", address]) == 1
    shown = capsys.readouterr()
    assert SECRET not in shown.out + shown.err
    assert not out.exists()


def test_the_key_of_the_environment_is_refused_in_an_address(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "ab12cd34ef")

    with pytest.raises(ActcacheError, match="a key in it"):
        AnalyzeConfig(base_url="https://host/ab12cd34ef/v1")


def test_an_address_is_recorded_in_one_spelling():
    assert AnalyzeConfig(base_url="https://HOST/v1/").base_url == "https://host/v1"


def test_a_summary_with_a_secret_is_not_shown(tmp_path, capsys):
    store = pairs(tmp_path)
    out = tmp_path / "out"
    assert main(["analyze", str(store.path), "-o", str(out), "--stages", "vectors"]) == 0
    path = out / "summary.json"
    summary = json.loads(path.read_text(encoding="utf-8"))
    summary["config"]["base_url"] = ADDRESSES[0]
    path.write_text(json.dumps(summary), encoding="utf-8")
    capsys.readouterr()

    assert main(["info", str(out), "--json"]) == 1
    shown = capsys.readouterr()
    assert SECRET not in shown.out + shown.err
    with pytest.raises(ActcacheError, match="OPENAI_API_KEY"):
        _ = open_results(out).summary


def test_settings_that_change_nothing_are_named(tmp_path):
    store = pairs(tmp_path)
    config = AnalyzeConfig(
        labels=("a", "b"),
        normalize=True,
        base_url="https://host/v1",
        top=(1, 2, 99),
        vectors=("caa",),
    )

    ignored = check_analysis(store, config)

    assert ignored == (
        "the setting labels: the rows have pairs",
        "the setting normalize: the rows have pairs",
        "the setting base_url: no encoder is openai:MODEL",
        "top 99: only 3 layers are steered",
    )
    assert check_analysis(store, AnalyzeConfig(top=(1,))) == ()


@pytest.mark.parametrize("provenance", [{}, {"model": {}}, {"model": {"name": "m"}}])
def test_a_store_that_does_not_say_its_model_is_refused(provenance, tmp_path, capsys):
    settings, values = example()
    settings["provenance"] = provenance
    settings["columns"] |= {name: ["x"] * 11 for name in ("variant", "split", "label")}
    path = build(tmp_path / "s.zarr", settings, values)

    with pytest.raises(MismatchError, match="does not record which model"):
        check_analysis(open_store(path), AnalyzeConfig())
    assert main(["info", str(path)]) == 0  # it can still be looked at
    assert "not recorded" in capsys.readouterr().out


def test_infinite_numbers_are_text_in_json_and_numbers_again():
    assert plain({"fisher": [float("inf"), 1.0, -float("inf")]}) == {
        "fisher": ["Infinity", 1.0, "-Infinity"]
    }
    assert typed(float, "-Infinity") == -float("inf")


def test_numbers_of_a_summary_that_do_not_fit_together_are_one_line(tmp_path, capsys):
    store = pairs(tmp_path)
    out = tmp_path / "out"
    assert main(["analyze", str(store.path), "-o", str(out), "--stages", "vectors"]) == 0
    path = out / "summary.json"
    summary = json.loads(path.read_text(encoding="utf-8"))
    damages: list[dict[str, Any]] = [
        {"store": 3},
        {"config": 3},
        {"verdicts": [{}]},
        {"vectors": {"a": 1}},
    ]
    for damage in damages:
        path.write_text(json.dumps(summary | damage), encoding="utf-8")
        capsys.readouterr()
        assert main(["info", str(out)]) == 1
        message = capsys.readouterr().err
        assert message.count("\n") == 1
        assert "mistake in actcache" not in message
