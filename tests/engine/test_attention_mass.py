"""Attention on a marked span: the masses of a pass, their definition, and a build that stores them."""

import json
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from actcache.build.replay import rendered_rows
from actcache.cli.main import main
from actcache.conventions import check_sites
from actcache.engine.model import adopt_model
from actcache.engine.reference import reference_capture, reference_values
from actcache.engine.tree_capture import capture
from actcache.errors import ActcacheError, ModelError, RenderError
from actcache.prompts.render import Rendered
from actcache.prompts.spans import random_span
from actcache.store.store import open_store
from tests.reference import engine as reference
from tests.support.tiny import FAMILIES, LAST_3, VOCAB, make, marked_rows, save


@pytest.mark.model
@pytest.mark.parametrize(("family", "attention"), FAMILIES)
def test_masses_equal_eager_hugging_face_with_each_prompt_alone(family, attention):
    model = adopt_model(make(family, attention=attention), name=family)
    eager, rows = make(family, attention="eager"), marked_rows()

    captured = capture(
        model, rows, positions=LAST_3, answer="first", sites=["attention", "resid_post"]
    )

    masses = captured["attention"]
    assert (masses.shape, masses.dtype) == ((6, 4, 3, 4), torch.float32)
    for i, row in enumerate(rows):
        for j in range(3):
            true = reference.attention_mass(eager, row.prompt, j + 1, row.span)
            # fp32: scores of size 10 carry 1e-6, and so do their exponentials.
            np.testing.assert_allclose(masses[i, :, j], true, rtol=0, atol=1e-5)
    assert masses[4].max() > 0.2
    np.testing.assert_allclose(masses[2, :, 0], 1, rtol=0, atol=1e-5)  # the whole prompt
    assert (masses[5] == 0).all()
    assert model.hf.config._attn_implementation == attention


@pytest.mark.model
@pytest.mark.parametrize(("family", "attention"), FAMILIES)
def test_masses_of_forks_and_answers_equal_those_of_the_row_alone(family, attention):
    model = adopt_model(make(family, attention=attention), name=family)
    positions = ("positive", "fork", "negative", "prompt")
    rows = [*marked_rows(), Rendered((5,), (6,), (7, 8), (9,), span=(0, 1))]

    captured = capture(model, rows, positions=positions, answer="last", sites=["attention"])

    for i, row in enumerate(rows):
        for j, position in enumerate(positions):
            true = reference_capture(model, row, position=position, answer="last", site="attention")
            torch.testing.assert_close(captured["attention"][i, :, j], true, rtol=0, atol=1e-5)
    assert model.hf.config._attn_implementation == attention  # eager for the row alone only


@pytest.mark.model
def test_a_prompt_of_one_token_attends_to_itself_alone():
    model = adopt_model(make("llama"), name="llama")
    rows = [Rendered((5,), span=(0, 1)), *(replace(row, span=(0, 1)) for row in marked_rows())]

    captured = capture(model, rows, positions=["prompt"], answer="first", sites=["attention"])

    torch.testing.assert_close(captured["attention"][0], torch.ones(4, 1, 4), rtol=0, atol=1e-6)


@pytest.mark.model
def test_sinks_take_their_share_of_the_mass():
    from transformers import GptOssConfig, GptOssForCausalLM

    config = GptOssConfig(
        vocab_size=VOCAB, hidden_size=32, intermediate_size=32, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, head_dim=8, num_local_experts=2,
        num_experts_per_tok=1, sliding_window=8, max_position_embeddings=128,
        initializer_range=0.3,
    )  # fmt: skip
    torch.manual_seed(0)
    model = adopt_model(GptOssForCausalLM(config).float(), name="oss")

    captured = capture(model, marked_rows(), positions=LAST_3, answer="first", sites=["attention"])

    for i, row in enumerate(marked_rows()):
        true = reference.attention_mass(model.hf, row.prompt, 2, row.span)
        np.testing.assert_allclose(captured["attention"][i, :, 1], true, rtol=0, atol=1e-5)
    assert captured["attention"][2].min() < 0.99  # all tokens are marked, and the sink is none


class _Shapes(TorchDispatchMode):
    """Notes the shape of every tensor that an operation gives."""

    def __init__(self):
        super().__init__()
        self.seen: set[tuple[int, ...]] = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, tuple | list) else [out]:
            if isinstance(tensor, torch.Tensor):
                self.seen.add(tuple(tensor.shape))
        return out


@pytest.mark.model
def test_no_matrix_of_all_tokens_by_all_tokens_is_made():
    model = adopt_model(make("llama", attention="sdpa"), name="llama")
    row = marked_rows()[0]

    with _Shapes() as shapes:
        capture(model, [row] * 2, positions=LAST_3, answer="first", sites=["attention"])
    with _Shapes() as eager:
        reference_capture(model, row, position="prompt", answer="first", site="attention")

    assert (2, 4, 3, 21) in shapes.seen  # 3 queries of 21 tokens
    assert not [shape for shape in shapes.seen if len(shape) == 4 and shape[1:] == (4, 21, 21)]
    assert (1, 4, 20, 20) in eager.seen  # so one would be noticed


@pytest.mark.model
def test_the_model_is_left_unchanged():
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    before = dict(ALL_ATTENTION_FUNCTIONS), ALL_ATTENTION_FUNCTIONS.get("eager")
    for family, attention in (("llama", "sdpa"), ("llama", "eager"), ("gpt_neo", "eager")):
        model = adopt_model(make(family, attention=attention), name=family)
        capture(model, marked_rows(), positions=LAST_3, answer="first", sites=["attention"])
        reference_capture(
            model, marked_rows()[0], position="prompt", answer="first", site="attention"
        )
        assert not any(module._forward_hooks for module in model.hf.modules())

    assert (dict(ALL_ATTENTION_FUNCTIONS), ALL_ATTENTION_FUNCTIONS.get("eager")) == before


@pytest.mark.model
def test_a_family_that_hides_its_attention_is_refused():
    model = adopt_model(make("gpt_neo"), name="gpt_neo")
    for block in model.anatomy.blocks:  # as sdpa would: no weights beside the output
        block.get_submodule("attn.attention").register_forward_hook(
            lambda _m, _args, out: (out[0], None)
        )

    with pytest.raises(ModelError, match=r"GPTNeoBlock returns no attention weights.*Leave 'att"):
        capture(model, marked_rows(), positions=LAST_3, answer="first", sites=["attention"])


@pytest.mark.model
def test_rows_without_a_span_and_the_mean_are_refused():
    model = adopt_model(make("llama"), name="llama")
    rows = [*marked_rows(), Rendered((5, 6))]

    with pytest.raises(RenderError, match=r"1 of 7 rows mark no span \(the first: '6'\)"):
        capture(model, rows, positions=["prompt"], answer="first", sites=["attention"])
    with pytest.raises(ActcacheError, match="Leave out mean"):
        capture(model, rows[:2], positions=["mean"], answer="first", sites=["attention"])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A tiny model with a chat template, and labelled prompts that begin in a marked prefix."""
    folder = tmp_path_factory.mktemp("mass")
    save(folder / "model")
    statements = ["Rain is wet.", "Bread is old and hard.", "Up.", "Two and two are five, no?"]
    rows: list[dict[str, Any]] = [
        {"prompt": f"Be afraid. {text}", "label": "fear", "span": "Be afraid."}
        for text in statements
    ]
    rows += [{"prompt": text, "label": "none", "span": [0, 0]} for text in statements]
    (folder / "fear.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    return folder


def build(folder, out, *flags, data="fear.jsonl"):
    return main(["build", str(folder / data), "--model", str(folder / "model"), "-o", str(out),
                 "--sites", "resid_post,attention", *flags])  # fmt: skip


@pytest.mark.model
@pytest.mark.parametrize("engine", ["torch", "transformer-lens"])
def test_a_build_keeps_the_masses_and_verify_recomputes_them(folder, tmp_path, engine, capsys):
    path = tmp_path / "s.zarr"
    flags = ("--positions", "template:3", "--store-dtype", "float16", "--engine", engine)
    assert build(folder, path, *flags) == 0
    assert main(["verify", str(path), "--recompute", "8"]) == 0
    capsys.readouterr()
    assert main(["info", str(path), "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)

    store = open_store(path)
    masses = store.array("attention/template_-2")
    assert facts["sites"] == ["resid_post", "attention"]
    assert store.d_model == 32
    assert (masses.shape, masses.dtype) == ((8, 4, 4), "float32")
    assert masses.dimension_names == ("n", "layer", "head")
    assert (masses[4:] == 0).all()  # an empty span gets nothing
    spans, tokens = store["span"], store.ragged("prompt_tokens")
    eager = make("llama", attention="eager")
    for i in range(4):
        true = reference.attention_mass(eager, tokens[i].tolist(), 2, spans[i].tolist())
        np.testing.assert_allclose(masses[i], true, rtol=0, atol=1e-5)
    assert [row.span for row in rendered_rows(store)] == [(3, 13)] * 4 + [(0, 0)] * 4
    assert store.certificate["sites"]["attention"] < 1e-5


@pytest.mark.model
def test_a_row_without_a_span_stops_the_build_with_one_line(folder, tmp_path, capsys):
    rows = (folder / "fear.jsonl").read_text().splitlines()
    row = json.loads(rows[1])
    del row["span"]
    (folder / "bare.jsonl").write_text("\n".join([*rows, json.dumps(row)]))

    assert build(folder, tmp_path / "s.zarr", data="bare.jsonl") == 1

    error = capsys.readouterr().err
    assert "1 of 9 rows mark no span (the first: 'bare/8')" in error
    assert "leave attention out of --sites" in " ".join(error.split())
    assert not list(tmp_path.iterdir())


@pytest.mark.model
def test_a_dry_run_counts_the_bytes_of_masses(folder, tmp_path, capsys):
    out = tmp_path / "s.zarr"
    flags = ("--positions", "template:3", "--store-dtype", "float16")
    assert build(folder, out, *flags, "--dry-run", "--json") == 0
    forecast = json.loads(capsys.readouterr().out)
    assert build(folder, out, *flags) == 0

    assert forecast["bytes on disk"] == open_store(out).n_bytes


@pytest.mark.model
@pytest.mark.parametrize(("family", "attention"), FAMILIES)
def test_the_control_is_the_mass_on_the_random_span(family, attention):
    model = adopt_model(make(family, attention=attention), name=family)
    rows = [
        replace(row, control_span=random_span(row.prompt, row.span, n_read=3))
        for row in marked_rows()
        if row.span is not None
    ]
    masses_of = partial(capture, model, positions=LAST_3, answer="first")

    both = masses_of(rows, sites=["attention", "attention_control"])
    swapped = [replace(row, span=row.control_span) for row in rows]

    alone = {
        "attention": masses_of(rows, sites=["attention"]),
        "attention_control": masses_of(swapped, sites=["attention"]),
    }
    for site, masses in alone.items():
        torch.testing.assert_close(both[site], masses["attention"], rtol=0, atol=1e-6)
    assert (both["attention"] + both["attention_control"]).max() <= 1 + 1e-5
    true = reference_capture(
        model, swapped[0], position="last_-2", answer="first", site="attention"
    )
    torch.testing.assert_close(both["attention_control"][0, :, 1], true, rtol=0, atol=1e-5)


def test_the_definition_reads_all_places_of_a_sequence_in_one_pass():
    model = adopt_model(make("llama"), name="llama")
    row = next(row for row in marked_rows() if row.span is not None)
    row = replace(row, control_span=random_span(row.prompt, row.span or (0, 0), n_read=3))
    sites = ["attention", "attention_control"]
    passes: list[int] = []
    handle = model.anatomy.decoder.register_forward_pre_hook(lambda *_: passes.append(1))

    together = reference_values(model, row, positions=LAST_3, answer="first", sites=sites)

    handle.remove()
    assert len(passes) == 1
    for site, span in zip(sites, (row.span, row.control_span), strict=True):
        marked = replace(row, span=span)
        for i, position in enumerate(LAST_3):
            true = reference_capture(
                model, marked, position=position, answer="first", site="attention"
            )
            torch.testing.assert_close(together[site][:, i], true, rtol=0, atol=0)
    assert not torch.equal(together["attention"], together["attention_control"])


def test_a_random_span_is_as_long_and_elsewhere():
    rng = np.random.default_rng(0)
    for _ in range(300):
        n, n_read = int(rng.integers(2, 30)), int(rng.integers(1, 4))
        prompt = tuple(rng.integers(0, 50, n).tolist())
        start = int(rng.integers(0, n))
        span = (start, int(rng.integers(start, n + 1)))

        control = random_span(prompt, span, n_read=n_read)

        length = control[1] - control[0]
        gaps = [min(start, n - n_read) - 1, n - n_read - max(span[1], 1)]
        assert length == max(0, min(span[1] - start, max(gaps)))
        marked = set(range(*span))
        if length:
            assert not marked & set(range(*control))
            assert control[0] >= 1
            assert control[1] <= n - n_read
        assert random_span(prompt, span, n_read=n_read) == control


def test_the_control_needs_the_masses_themselves():
    with pytest.raises(ActcacheError, match="Add attention to the sites"):
        check_sites(["attention_control"], ["prompt"])
