"""Steerings as control vectors and for EasySteer, and control vectors as steerings."""

import json
import struct
import sys
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from actcache.cli.main import main
from actcache.errors import ActcacheError, FormatError, MismatchError, StoreExistsError
from actcache.exchange import export
from actcache.steering import PromptGate, Steering, SteeringSource, TokenGate
from actcache.steering.files.control_vector import read_control_vector

D = 6
RNG = np.random.default_rng(0)
SOURCE = SteeringSource(family="llama", behavior="tidy", n_layers=6, d_model=D)
ADD = Steering(
    layers=(2, 4), vectors=RNG.normal(size=(2, D)), strength=0.5, tokens="all", source=SOURCE
)
UNIT = np.eye(D)[:2]


@pytest.fixture
def gguf():
    return pytest.importorskip("gguf", reason="the optional package gguf is not installed")


def test_a_control_vector_has_the_strength_in_it_and_zeros_elsewhere(gguf, tmp_path):
    facts = export(ADD, tmp_path / "v.gguf")
    reader = gguf.GGUFReader(tmp_path / "v.gguf")
    written = {tensor.name: tensor.data for tensor in reader.tensors}
    assert facts["names"] == list(written) == [f"direction.{layer}" for layer in range(1, 6)]
    assert facts["digest"] == ADD.digest
    for layer in range(1, 6):
        expected = np.zeros(D, np.float32)
        if layer in ADD.layers:
            expected = (0.5 * ADD.vectors[ADD.layers.index(layer)]).astype(np.float32)
        np.testing.assert_array_equal(written[f"direction.{layer}"], expected)
    hint = reader.get_field("controlvector.model_hint")
    assert bytes(hint.parts[-1]).decode() == "llama"
    count = reader.get_field("controlvector.layer_count")
    assert int(count.parts[-1][0]) == 5


def test_a_control_vector_is_read_as_the_steering_that_llama_cpp_does(gguf, tmp_path):
    export(ADD, tmp_path / "v.gguf")
    loaded = Steering.load(tmp_path / "v.gguf")
    assert loaded == replace(ADD, strength=1, vectors=0.5 * ADD.vectors)
    export(loaded, tmp_path / "again.gguf")  # of a model whose layers are not known
    assert Steering.load(tmp_path / "again.gguf") == loaded
    with pytest.raises(MismatchError, match="'d_model': stored 6, found 8"):
        Steering.load(tmp_path / "v.gguf", model={"d_model": 8})


def test_parts_at_one_layer_are_added_up(gguf, tmp_path):
    export(ADD + replace(ADD, layers=(1, 4), strength=2), tmp_path / "v.gguf")
    [part] = Steering.load(tmp_path / "v.gguf").parts
    assert part.layers == (1, 2, 4)
    np.testing.assert_allclose(part.vectors[1], 0.5 * ADD.vectors[0], rtol=1e-6)
    np.testing.assert_allclose(part.vectors[2], 2.5 * ADD.vectors[1], rtol=1e-6)


def test_easysteer_gets_a_folder_of_its_keys(gguf, tmp_path):
    erase = Steering(operator="ablate", layers=(2, 3), vectors=UNIT, tokens="completion")
    export(ADD + erase, tmp_path / "easy", to="easysteer")
    spec = json.loads((tmp_path / "easy" / "spec.json").read_text(encoding="utf-8"))
    assert spec == {
        "vectors": [
            {
                "source": "vectors.gguf",
                "algorithm": "direct",
                "scale": 0.5,
                "layers": [2, 4],
                "normalize": False,
                "apply": {"prompt": "all", "generation": "all"},
            },
            {
                "source": "vectors_1.gguf",
                "algorithm": "erase",
                "scale": 1.0,
                "layers": [2, 3],
                "normalize": False,
                "apply": {"generation": "all"},
            },
        ],
        "conflict": "sequential",
    }
    raw = (tmp_path / "easy" / "vectors.gguf").read_bytes()
    directions = read_control_vector(raw)
    assert list(directions) == [2, 4]
    np.testing.assert_array_equal(np.stack(list(directions.values())), ADD.vectors)
    with pytest.raises(StoreExistsError, match="Choose another path"):
        export(ADD, tmp_path / "easy", to="easysteer", overwrite=True)


@pytest.mark.parametrize(
    ("tokens", "window", "apply"),
    [
        ("prompt", None, {"prompt_positions": [-1], "generation": "all"}),
        ("prompt", (0, 1), {"prompt_positions": [-1]}),
        ("prompt", (0, 4), {"prompt_positions": [-1], "generation_window": [0, 3]}),
        ("prompt", (2, None), {"generation_window": [1, None]}),
        ("all", None, {"prompt": "all", "generation": "all"}),
        ("all", (0, 1), {"prompt": "all"}),
        ("all", (0, 4), {"prompt": "all", "generation_window": [0, 3]}),
        ("all", (2, 4), {"generation_window": [1, 3]}),
        ("completion", None, {"generation": "all"}),
        ("completion", (0, 4), {"generation_window": [0, 3]}),
        ("completion", (3, 5), {"generation_window": [2, 4]}),
    ],
)
def test_easysteers_steps_begin_at_the_first_generated_token(gguf, tmp_path, tokens, window, apply):
    export(replace(ADD, tokens=tokens, window=window), tmp_path / "easy", to="easysteer")
    spec = json.loads((tmp_path / "easy" / "spec.json").read_text(encoding="utf-8"))
    assert spec["vectors"][0]["apply"] == apply


PLANE = {"operator": "rotate", "vectors": np.stack([np.eye(D)[:2]] * 2)}
GATE = PromptGate(layers=(1,), vectors=np.ones((1, D)), threshold=0)
REFUSED = [
    ("gguf", {"operator": "ablate", "vectors": UNIT}, "operator is 'ablate', expected 'add'"),
    ("gguf", {"site": "resid_pre"}, "site is 'resid_pre', expected 'resid_post'"),
    ("gguf", {"tokens": "prompt"}, "tokens is 'prompt', expected 'all'"),
    ("gguf", {"window": (0, 4)}, r"window is \(0, 4\), expected none"),
    ("gguf", {"gate": TokenGate()}, "gate is TokenGate, expected none"),
    ("gguf", {"gate": GATE}, "gate is PromptGate, expected none"),
    ("gguf", {"renorm": True}, "renorm is True, expected none"),
    ("gguf", {"layers": (0, 1)}, r"layers is \[0, 1\], expected layers from 1 on"),
    ("easysteer", PLANE, "operator is 'rotate', expected 'add' or 'ablate'"),
    ("easysteer", {"operator": "ablate", "vectors": UNIT}, "strength is 0.5, expected 1 for"),
    ("easysteer", {"site": "ln1"}, "site is 'ln1', expected 'resid_post'"),
    ("easysteer", {"gate": TokenGate()}, "gate is TokenGate, expected none"),
    ("easysteer", {"renorm": True}, "renorm is True"),
    ("easysteer", {"layers": (0, 1)}, "expected layers from 1 on"),
    (
        "easysteer",
        {"tokens": "front", "layers": (2,)},
        "tokens is 'front', expected 'all' or 'prompt' or 'completion'",
    ),
]


@pytest.mark.parametrize(("to", "fields", "message"), REFUSED)
def test_what_a_format_cannot_say_is_refused_by_name(gguf, tmp_path, to, fields, message):
    steering = replace(ADD, **fields)
    for whole in (steering, ADD + steering):
        with pytest.raises(MismatchError, match=f"{message}.*{to} cannot say it. Change the field"):
            export(whole, tmp_path / "out", to=to)
    assert list(tmp_path.iterdir()) == []


def test_a_steering_file_is_exported_by_the_command_and_shown_by_info(gguf, tmp_path, capsys):
    path = tmp_path / "s.safetensors"
    ADD.save(path)
    for to, name in (("gguf", "v.gguf"), ("easysteer", "easy"), ("safetensors", "t.safetensors")):
        assert main(["export", str(path), "--to", to, "-o", str(tmp_path / name)]) == 0
        assert "direction.1" in capsys.readouterr().out or to != "gguf"
    assert (tmp_path / "t.safetensors").read_bytes() == path.read_bytes()
    for flags in (["--to", "npz"], ["--to", "gguf", "--directions", "tidy"]):
        assert main(["export", str(path), *flags, "-o", str(tmp_path / "x")]) == 1
        assert "a steering is written whole to safetensors, gguf" in capsys.readouterr().err
    assert main(["export", str(path), "--to", "gguf", "-o", str(tmp_path / "v.gguf")]) == 1
    assert "--overwrite" in capsys.readouterr().err

    assert main(["info", str(path)]) == 0
    shown = capsys.readouterr().out
    for text in (ADD.digest, "resid_post", "2, 4", "0.5", "llama", "tidy"):
        assert text in shown
    (ADD + replace(ADD, strength=2)).save(path)
    assert main(["info", str(path)]) == 0
    assert "1.strength" in capsys.readouterr().out
    assert main(["info", str(path), "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert [part["strength"] for part in facts["parts"]] == [0.5, 2]
    assert facts["parts"][0]["source"]["behavior"] == "tidy"
    assert main(["info", str(tmp_path / "v.gguf")]) == 0
    assert "control vector" in capsys.readouterr().out


def test_stores_and_results_are_not_for_easysteer(store, results, tmp_path):
    with pytest.raises(MismatchError, match="Pass its OUT, or a steering file"):
        export(store, tmp_path / "x", to="easysteer")
    with pytest.raises(MismatchError, match="Choose another format"):
        export(results[0], tmp_path / "x", to="easysteer")


@pytest.mark.parametrize("to", ["gguf", "easysteer"])
def test_a_missing_package_gguf_names_the_remedy(tmp_path, monkeypatch, to):
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(ActcacheError, match=r"actcache\[gguf\]"):
        export(ADD, tmp_path / "v", to=to)


def text(value):
    return struct.pack("<Q", len(value)) + value.encode()


def field(name, kind, raw):
    return text(name) + struct.pack("<I", kind) + raw


ARCHITECTURE = field("general.architecture", 8, text("controlvector"))


VALUES = np.arange(D, dtype="<f4").tobytes()


def control_vector(
    tensors=(("direction.1", (D,), 0, 0),),
    fields=(ARCHITECTURE,),
    version=3,
    data=VALUES,
    alignment=32,
):
    """A control vector's bytes, written without the package."""
    raw = b"GGUF" + struct.pack("<IQQ", version, len(tensors), len(fields)) + b"".join(fields)
    for name, shape, kind, offset in tensors:
        raw += text(name) + struct.pack(f"<I{len(shape)}Q", len(shape), *shape)
        raw += struct.pack("<IQ", kind, offset)
    return raw + b"\0" * (-len(raw) % alignment) + data


def test_every_kind_of_metadata_is_read_over(tmp_path):
    fields = [
        *(field(f"n{kind}", kind, b"\1" * size) for kind, size in
          ((0, 1), (1, 1), (2, 2), (3, 2), (4, 4), (5, 4), (6, 4), (7, 1), (10, 8), (11, 8), (12, 8))),
        field("general.tags", 9, struct.pack("<IQ", 8, 2) + text("a") + text("b")),
        field("list", 9, struct.pack("<IQ", 4, 3) + b"\0" * 12),
        field("general.alignment", 4, struct.pack("<I", 64)),
        ARCHITECTURE,
    ]  # fmt: skip
    (tmp_path / "v.gguf").write_bytes(control_vector(fields=fields, alignment=64))
    [part] = Steering.load(tmp_path / "v.gguf").parts
    np.testing.assert_array_equal(part.vectors, [np.arange(D)])
    assert part.layers == (1,)


ZEROS = np.zeros(2 * D, "<f4").tobytes()
NOT_FINITE = np.full(D, np.inf, "<f4").tobytes()
SIGNALLING = VALUES[:-4] + struct.pack("<I", 0x7FA00001)  # a NaN whose comparison warns
BAD = [
    (control_vector(version=1), "version 1, expected 2 or 3"),
    (control_vector(version=3 << 24), "expected 2 or 3 in little-endian"),
    (control_vector(fields=()), "general.architecture is None, expected 'controlvector'"),
    (
        control_vector(fields=[field("general.architecture", 8, text("llama"))]),
        "general.architecture is 'llama'",
    ),
    (control_vector([("direction.0", (D,), 0, 0)]), "tensor 'direction.0', expected direction.1"),
    (control_vector([("blk.0.attn_q.weight", (D,), 0, 0)]), "tensor 'blk.0.attn_q.weight'"),
    (control_vector([("direction.1", (D,), 1, 0)]), r"'direction.1' has shape \[6\] and type 1"),
    (control_vector([("direction.1", (2, 3), 0, 0)]), r"shape \[2, 3\] .* expected \[d\]"),
    (control_vector([("direction.1", (1 << 40,), 0, 0)]), "it ends early"),
    (control_vector([("direction.1", (D,), 0, 1 << 60)]), "it ends early"),
    (
        control_vector([("direction.1", (D,), 0, 0), ("direction.1", (D,), 0, 0)]),
        "direction.1 is there twice",
    ),
    (
        control_vector([("direction.1", (D,), 0, 0), ("direction.2", (3,), 0, 0)]),
        r"its directions have widths \[3, 6\], expected one",
    ),
    (control_vector([]), r"its directions have widths \[\]"),
    (control_vector(data=ZEROS), "all of its directions are zero"),
    (control_vector(data=NOT_FINITE), "direction.1 is not finite"),
    (control_vector(data=SIGNALLING), "direction.1 is not finite"),
    (control_vector(fields=[ARCHITECTURE, field("x", 13, b"")]), "metadata of type 13"),
    (
        control_vector(fields=[ARCHITECTURE, field("x", 9, struct.pack("<IQ", 9, 1))]),
        "a list of type 9",
    ),
    (
        control_vector(fields=[ARCHITECTURE, field("x", 9, struct.pack("<IQ", 8, 1 << 40))]),
        "texts in a list, at most",
    ),
    (
        control_vector(fields=[ARCHITECTURE, field("x", 9, struct.pack("<IQ", 4, 1 << 62))]),
        "it ends early",
    ),
    (
        control_vector(fields=[ARCHITECTURE, field("general.alignment", 4, b"\0\0\0\0")]),
        "general.alignment is 0",
    ),
    (control_vector(fields=[field("general.architecture", 8, text("\xff")[:8] + b"\xff\xff")]), "utf-8"),
    (b"GGUF" + struct.pack("<IQQ", 3, 1 << 50, 0), "tensors, at most"),
    (b"GGUF" + struct.pack("<IQQ", 3, 0, 1 << 50), "fields, at most"),
]  # fmt: skip


@pytest.mark.parametrize(("raw", "message"), BAD)
def test_a_wrong_control_vector_is_refused_by_name(tmp_path, raw, message):
    path = tmp_path / "v.gguf"
    path.write_bytes(raw)
    with pytest.raises(FormatError, match=message) as error:
        Steering.load(path)
    assert "\n" not in str(error.value)


@settings(max_examples=200)
@given(data=st.data())
def test_cut_or_changed_bytes_never_raise_anything_else(tmp_path_factory, data):
    raw = bytearray(control_vector())
    if data.draw(st.booleans()):
        raw = raw[: data.draw(st.integers(4, len(raw) - 1))]
    else:
        raw[data.draw(st.integers(4, len(raw) - 1))] = data.draw(st.integers(0, 255))
    path = tmp_path_factory.mktemp("cut") / "v.gguf"
    path.write_bytes(raw)
    try:
        loaded = Steering.load(path)
    except FormatError:
        return
    assert np.isfinite(loaded.parts[0].vectors).all()
