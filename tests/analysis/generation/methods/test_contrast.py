"""ActAdd adds the difference of two texts' block inputs, token by token, to a prompt's start."""

import json

import numpy as np
import pytest
import torch

import actcache
from actcache.analysis.generation.methods.contrast import (
    actadd,
    contrast_texts,
    contrast_tokens,
    contrast_vectors,
)
from actcache.data.personas import Persona
from actcache.engine.model import load_tokenizer
from actcache.errors import ActcacheError, MismatchError
from tests.analysis.generation.methods.steered import parts

pytestmark = pytest.mark.model
TEXTS = ("Love", "Hate it")


def test_the_vectors_are_differences_of_hugging_faces_hidden_states(inputs, model, store):
    candidate = actadd(inputs(contrast=TEXTS, layers=(2,)))

    (part,) = parts(candidate)

    tokenizer = load_tokenizer(model.name)
    ids = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in ("Love   ", TEXTS[1])]
    with torch.no_grad():
        states = [
            model.hf(torch.tensor([text]), output_hidden_states=True).hidden_states[2][0]
            for text in ids
        ]
    np.testing.assert_allclose(part.vectors, (states[0] - states[1]).numpy(), atol=1e-5)
    assert (part.operator, part.site, part.layers, part.tokens) == (
        "add",
        "resid_pre",
        (2,),
        "front",
    )
    assert (candidate.unit, candidate.identity) == ("multiplier", 0.0)
    assert "7 tokens" in candidate.notes[-1]


def test_texts_begin_as_the_prompts_do(tmp_path):
    from tests.support import tiny

    tiny.save(tmp_path / "model", bos=True)
    path = tmp_path / "rows.jsonl"
    rows = [{"prompt": f"{i}?", "positive": "(A)", "negative": "(B)"} for i in range(10)]
    path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    store = actcache.build_store(path, tmp_path / "s.zarr", model=tmp_path / "model")

    positive, negative = contrast_tokens(store, "ab", "c")

    space = load_tokenizer(str(tmp_path / "model"))(" ", add_special_tokens=False)["input_ids"]
    assert positive[0] == negative[0] == 0  # BOS
    assert len(positive) == len(negative) == 3
    assert list(negative[2:]) == space


def test_equal_texts_are_refused(inputs, model):
    with pytest.raises(MismatchError, match=r"same values before block 1.*Pass other texts"):
        actadd(inputs(contrast=("a", "a"), layers=(1,)))
    assert not contrast_vectors(model, ((5, 6), (5, 6)), layer=1).any()
    with pytest.raises(MismatchError, match=r"one layer"):
        actadd(inputs(contrast=TEXTS, layers=(1, 2)))
    with pytest.raises(MismatchError, match=r"one layer"):
        actadd(inputs(contrast=TEXTS, layers="predicted"))


def test_texts_come_from_personas_or_are_asked_for(inputs, folder, monkeypatch):
    with pytest.raises(ActcacheError, match=r"no two texts .*'kind'.*--variants base,sys_pos"):
        contrast_texts(inputs())
    assert contrast_texts(inputs(contrast=TEXTS)) == TEXTS
    monkeypatch.setattr(
        "actcache.analysis.generation.methods.contrast.load_personas",
        lambda: {"kind": Persona("You are kind.", "You are not.")},
    )
    assert contrast_texts(inputs()) == ("You are kind.", "You are not.")


def test_texts_come_from_the_framed_rows_of_the_store(folder, results, model):
    from actcache.analysis.generation.methods.behavior import BehaviorInputs, MethodSettings

    personas = folder / "personas.json"
    personas.write_text(json.dumps({"kind": {"positive": "Be so.", "negative": "Do not."}}))
    path = folder / "framed.zarr"
    store = actcache.build_store(
        folder / "kind.jsonl",
        path,
        model=folder / "model",
        variants=("base", "sys_pos", "sys_neg"),
        personas=personas,
        overwrite=True,
    )
    framed = BehaviorInputs(
        results=results,
        store=store,
        behavior="kind",
        settings=MethodSettings(model=lambda: model),
    )
    assert contrast_texts(framed) == ("Be so.", "Do not.")
