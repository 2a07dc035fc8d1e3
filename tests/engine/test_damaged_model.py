"""Models of strangers: damaged files are one line, pickles run no code, missing memory is said."""

import os
import pickle
import shutil

import pytest
import torch
from safetensors.torch import load_file

from actcache.build.config import BuildConfig
from actcache.build.plan import plan_build
from actcache.engine.model import load_config, load_model, load_tokenizer
from actcache.errors import ModelError

pytestmark = pytest.mark.model


class Evil:
    """Runs a command when it is unpickled."""

    def __init__(self, command):
        self.command = command

    def __reduce__(self):
        return os.system, (self.command,)


@pytest.fixture
def copied(calm, tmp_path):
    return shutil.copytree(calm / "model", tmp_path / "model")


def one_line(caught):
    message = str(caught.value)
    assert "\n" not in message
    assert len(message) < 700
    return message


@pytest.mark.parametrize("left", [0, 5, 5000])
def test_cut_safetensors(copied, left):
    path = copied / "model.safetensors"
    path.write_bytes(path.read_bytes()[:left])

    with pytest.raises(ModelError, match="cannot load the model") as caught:
        load_model(str(copied))
    assert "Pass a folder with config.json" in one_line(caught)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("config.json", "{"),
        ("config.json", "[1]"),
        ("config.json", '{"model_type": 7}'),
        ("tokenizer.json", "{"),
        ("tokenizer_config.json", "[]"),
    ],
)
def test_damaged_documents(copied, name, content):
    (copied / name).write_text(content, encoding="utf-8")

    load = load_tokenizer if name.startswith("tok") else load_config
    with pytest.raises(ModelError, match="Pass a folder with config") as caught:
        load(str(copied))
    one_line(caught)


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("kind", ["pickle", "torch", "garbage", "empty", "list"])
def test_a_pickle_runs_no_code(copied, tmp_path, kind):
    mark = tmp_path / "ran"
    weights = load_file(copied / "model.safetensors")
    (copied / "model.safetensors").unlink()
    path, evil = copied / "pytorch_model.bin", Evil(f"touch {mark}")
    match kind:
        case "pickle":
            path.write_bytes(pickle.dumps({"a": evil}))
        case "torch":
            torch.save({**weights, "evil": evil}, path)
        case "list":
            torch.save([1, 2], path)
        case _:
            path.write_bytes(b"garbage" if kind == "garbage" else b"")

    with pytest.raises(ModelError, match="cannot load the model") as caught:
        load_model(str(copied))
    one_line(caught)
    assert not mark.exists()


def test_a_pickle_of_weights_is_read_and_said(copied, samples):
    weights = load_file(copied / "model.safetensors")
    (copied / "model.safetensors").unlink()
    torch.save(weights, copied / "pytorch_model.bin")

    plan = plan_build(samples, BuildConfig(model=str(copied), revision="main"))

    assert "pytorch_model.bin, a pickle: it is read with weights_only" in " ".join(plan.notes)
    assert "--revision main is ignored" in " ".join(plan.notes)
    assert load_model(str(copied)).n_layers == 4


@pytest.mark.parametrize(
    "error", [MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory: 9 GB")]
)
def test_a_model_that_does_not_fit_is_one_line(copied, monkeypatch, error):
    def refuse(*_args, **_settings):
        raise error

    monkeypatch.setattr("transformers.AutoModelForCausalLM.from_pretrained", refuse)

    with pytest.raises(ModelError, match=r"does not fit into memory.*smaller --dtype"):
        load_model(str(copied))
