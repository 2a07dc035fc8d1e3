"""Each preset, from rows to propensities, against the code that it is named after, line by line."""

import ast
import json
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import numpy as np
import pytest

from actcache import conventions
from actcache.analysis.config import AnalyzeConfig
from actcache.build.config import BuildConfig
from actcache.cli.main import main
from actcache.cli.terminal.options import preset_help
from actcache.conventions import (
    MEANINGS,
    NO_PRESET,
    PRESET_NAMES,
    PRESETS,
    Preset,
    build_settings,
    find_preset,
    sweep_settings,
)
from actcache.data.samples import Sample
from actcache.errors import ActcacheError
from actcache.prompts.checks import CONDITIONS
from actcache.prompts.render import Renderer, Rendering
from tests.reference.published import published_direction, published_propensity
from tests.support.processes import ROOT
from tests.support.tiny import TEMPLATE, save, tokenizer

SHARED = Path(__file__).parents[2] / "shared" / "data"
TALK = (  # tinytalk's own template, and a place for the system message
    "{% for m in messages %}{% if m['role'] == 'system' %}{{ m['content'] + '\n' }}"
    "{% else %}{{ 'User: ' + m['content'] + '\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'Bot:\n' }}{% endif %}"
)
LAYERS = (1, 2)


@dataclass(frozen=True)
class Material:
    """A model's folder, a template, and rows in a file."""

    model: str
    template: Path
    data: Path
    rows: list[dict[str, Any]]


def written(folder, model, template, rows):
    folder.mkdir(exist_ok=True)
    (folder / "template.jinja").write_text(template, encoding="utf-8")
    data = folder / "rows.jsonl"
    data.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return Material(model, folder / "template.jinja", data, rows)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """A random model whose template and tokenizer both put a BOS; half the answers bring a space."""
    folder = tmp_path_factory.mktemp("tiny")
    model = save(folder / "model", bos=True)
    rows = [
        {
            "id": f"r{i}",
            "prompt": f" Is it {i}?\n",
            "positive": " " * (i % 4 < 2) + ("(A)" if i % 2 else "(B)"),
            "negative": " " * (i % 4 < 2) + ("(B)" if i % 2 else "(A)"),
        }
        for i in range(12)
    ]
    return written(folder, model, "{{ bos_token }}" + TEMPLATE.replace("'A:'", "'A:\n'"), rows)


@pytest.fixture(scope="module")
def real(tmp_path_factory):
    """Tinytalk and rows of steering-bench: narcissism has "(A)", corrigible " (A)"."""
    if not SHARED.is_dir():
        pytest.skip("../shared/data, with a real model and real rows, is not there")
    rows = []
    for name in ("narcissism", "corrigible-neutral-HHH"):
        document = json.loads((SHARED / "mwe/steering-bench" / f"{name}.json").read_text("utf-8"))
        short = [row for row in document if len(row["positive"]["prompt"]) < 420][:8]
        rows += [
            {
                "id": f"{name}/{i}",
                "prompt": row["positive"]["prompt"],
                "positive": row["positive"]["response"],
                "negative": row["negative"]["response"],
            }
            for i, row in enumerate(short)
        ]
    folder = tmp_path_factory.mktemp("real")
    return written(folder, str(SHARED / "models/tinytalk-3m"), TALK, rows)


def run(material, out, preset, *more):
    """Build and analyze with nothing but the preset's name; the store, the sweep, the summary."""
    from actcache.store.store import open_store

    build = ["build", material.data, "--model", material.model, "--preset", preset, *more]
    build += ["--template", material.template, "-o", out / "s.zarr"]
    assert main([str(word) for word in build]) == 0
    layers = ",".join(map(str, LAYERS))
    analyze = ["analyze", out / "s.zarr", "-o", out / "results", "--layers", layers]
    analyze += ["--stages", "vectors,sweep", "--controls", 0, "--draws", 10, "--all-rows"]
    assert main([str(word) for word in analyze]) == 0
    summary = json.loads((out / "results" / "summary.json").read_text("utf-8"))
    return open_store(out / "s.zarr"), open_store(out / "results" / "sweep.zarr"), summary


def compare(material, blocks_of, out, preset, *, n):
    from safetensors.numpy import load_file
    from transformers import AutoModelForCausalLM, AutoTokenizer

    store, swept, summary = run(material, out, preset)
    hf = AutoModelForCausalLM.from_pretrained(material.model).eval()
    tokenizer = AutoTokenizer.from_pretrained(material.model)
    template = material.template.read_text("utf-8")
    blocks = blocks_of(hf)
    by_id = {row["id"]: row for row in material.rows}
    ids = store["id"].tolist()
    assert len(ids) == len(material.rows)
    train = [by_id[i] for i, split in zip(ids, store["split"], strict=True) if split == "train"]

    direction = published_direction(preset, hf, blocks, tokenizer, template, train)
    exported = load_file(out / "results" / "directions.safetensors")["rows/difference_of_means"]
    # float32; measured 3e-7 on real rows
    np.testing.assert_allclose(exported, direction.numpy(), rtol=1e-4, atol=1e-5)

    multipliers = swept["multiplier"].tolist()
    assert multipliers == list(PRESETS[preset].sweep["multipliers"])
    chosen = range(0, len(ids), len(ids) // n)
    expected = [
        [
            [
                published_propensity(
                    preset, hf, blocks, tokenizer, template, by_id[ids[i]], direction, x, layer
                )
                for x in multipliers
            ]
            for layer in LAYERS
        ]
        for i in chosen
    ]
    propensity = swept.array("difference_of_means/propensity")[:][list(chosen)]
    # The codes subtract two sums of some hundred float32 scores of size 10; measured 1.2e-5.
    np.testing.assert_allclose(propensity, expected, rtol=1e-4, atol=1e-4)
    assert np.ptp(np.array(expected), axis=-1).max() > 0.01  # steering does something
    assert summary["config"]["preset"] == store.config["preset"] == preset
    return store


@pytest.mark.model
@pytest.mark.parametrize("preset", PRESETS)
def test_a_preset_gives_what_its_code_gives_on_a_tiny_model(tiny, tmp_path, preset):
    store = compare(tiny, lambda hf: hf.model.layers, tmp_path, preset, n=4)

    n_bos = {len(row) - len([x for x in row if x]) for row in store.ragged("prompt_tokens")}
    assert n_bos == {2 if preset == "steering-bench" else 1}
    noted = store.provenance["conditions"]["broken"]
    assert set(noted) == ({"bos", "one_space"} if preset == "steering-bench" else set())


@pytest.mark.model
@pytest.mark.parametrize("preset", PRESETS)
def test_a_preset_gives_what_its_code_gives_on_real_rows(real, tmp_path, preset):
    compare(real, lambda hf: hf.transformer.h, tmp_path, preset, n=2)


@pytest.mark.model
def test_a_given_flag_wins_over_the_preset(tiny, tmp_path, capsys):
    store, _, summary = run(tiny, tmp_path, "steering-bench", "--space", "one", "--system", "")

    config = store.config
    assert (config["preset"], config["space"], config["system"]) == ("steering-bench", "one", None)
    assert config["bos"] == "tokenizer"
    assert summary["config"]["score"] == "logprob"
    assert "preset steering-bench" in capsys.readouterr().err

    again = ["analyze", str(tmp_path / "s.zarr"), "-o", str(tmp_path / "other")]
    again += ["--stages", "vectors", "--preset", "caa", "--score", "logit"]
    assert main(again) == 0
    chosen = json.loads((tmp_path / "other" / "summary.json").read_text("utf-8"))["config"]
    assert (chosen["preset"], chosen["first_steered"], chosen["score"]) == (
        "caa",
        "prompt",
        "logit",
    )


@pytest.mark.model
@pytest.mark.parametrize(
    ("preset", "between"), [("steering-bench", ""), ("repepo", "\n\n"), ("none", "\n\n")]
)
def test_the_separator_of_user_variants_is_the_presets(tiny, tmp_path, preset, between):
    from actcache.store.store import open_store

    personas = tmp_path / "p.json"
    text = json.dumps({"rows": {"positive": "You would.", "negative": "You would not."}})
    personas.write_text(text, encoding="utf-8")
    build = ["build", tiny.data, "--model", tiny.model, "--preset", preset, "--system", ""]
    build += ["--variants", "user_pos", "--personas", personas, "--limit", 4, "--positions"]
    build += ["prompt", "-o", tmp_path / "s.zarr"]
    assert main([str(word) for word in build]) == 0

    assert open_store(tmp_path / "s.zarr")["prompt"][0] == f"You would.{between} Is it 0?\n"


def test_what_the_tokenizer_puts_after_a_text_stays_out():
    from tokenizers import processors

    tok = tokenizer(template="{{ bos_token }}{{ messages[0]['content'] }}")
    tok.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A }", special_tokens=[("<s>", 0), ("}", 95)]
    )
    assert tok("a")["input_ids"] == [0, *tok.convert_tokens_to_ids(["a"]), 95]
    sample = Sample(
        id="b/0", behavior="b", prompt="Hi}", positive="(A)", negative="(B)", label=None, letter="A"
    )
    for bos, n_bos in (("tokenizer", 2), ("auto", 1)):
        row = Renderer(tok, Rendering(bos=bos))(sample)
        words = tok.convert_ids_to_tokens([*row.chain, *row.positive])
        assert words == ["<s>"] * n_bos + list("Hi} (A)")


@pytest.mark.parametrize("template", [None, "{{ messages[0]['content'] + '\n' }}"])
def test_stripping_leaves_one_space_whatever_stands_around_it(template):
    tok = tokenizer(template=template)
    sample = Sample(
        id="b/0", behavior="b", prompt="\nHi \n", positive=" (A)\n", negative="(B)", label=None,
        letter="A",
    )  # fmt: skip
    row = Renderer(tok, Rendering(space="strip"))(sample)

    assert tok.convert_ids_to_tokens([*row.chain, *row.positive]) == list("Hi (A)")


def test_every_preset_sets_fields_that_exist_to_values_that_are_allowed():
    for name, preset in PRESETS.items():
        BuildConfig(model="m", **build_settings(name, {}))
        AnalyzeConfig(**sweep_settings(name, {}))
        assert set(preset.sweep) <= {field.name for field in fields(AnalyzeConfig)}
        assert set(preset.build) <= {field.name for field in fields(BuildConfig)}
        assert set(preset.conditions) <= set(CONDITIONS)
        assert isinstance(find_preset(name), Preset)
        assert find_preset(name).conditions == preset.conditions


def test_no_preset_sets_nothing():
    assert build_settings("none", {"bos": None}) == {"preset": "none", "system": None}
    assert sweep_settings("none", {"score": "logit", "multipliers": None}) == {
        "preset": "none",
        "score": "logit",
    }
    assert find_preset("none").conditions == ()


def test_help_shows_what_each_preset_sets(capsys):
    for command, part in (("build", "build"), ("analyze", "sweep")):
        assert main([command, "--help"]) == 0
        shown = capsys.readouterr().out
        for name, preset in PRESETS.items():
            assert f"{name} ({preset.code})" in shown
            for field in getattr(preset, part):
                assert f"--{field.replace('_', '-')}=" in preset_help(part)


def test_refuses_an_unknown_preset():
    unknown: Any = "caaa"
    for call in (
        lambda: build_settings(unknown, {}),
        lambda: BuildConfig(model="m", preset=unknown),
        lambda: AnalyzeConfig(preset=unknown),
    ):
        with pytest.raises(ActcacheError, match=", ".join(PRESET_NAMES)):
            call()


def test_the_names_of_presets_are_those_of_the_table():
    assert (NO_PRESET, *PRESETS) == PRESET_NAMES


@pytest.mark.parametrize("words", MEANINGS, ids=str)
def test_each_word_that_help_explains_has_a_meaning(words):
    explained = [word for key in MEANINGS[words] for word in key.split(", ")]

    assert explained == list(get_args(words))
    assert all(MEANINGS[words].values())


def test_no_other_module_spells_the_words_of_a_setting():
    sets = {frozenset(get_args(x)) for x in vars(conventions).values() if get_origin(x) is Literal}
    spelled = []
    for folder in ("actcache", "analysis", "cli"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.Tuple | ast.List | ast.Set):
                    words = frozenset(x.value for x in node.elts if isinstance(x, ast.Constant))
                    if words in sets and path.name != "conventions.py":
                        spelled.append(f"{path.relative_to(ROOT)}:{node.lineno}")
    assert len(sets) > 10
    assert spelled == []
