"""The steering file: round trip, golden bytes, and everything in it that is refused."""

import json
import struct
from contextlib import suppress
from dataclasses import fields, replace
from hashlib import sha256

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from safetensors import safe_open

from actcache.errors import ActcacheError, FormatError, MismatchError, StoreNotFoundError
from actcache.steering import (
    Calibration,
    PromptGate,
    Steering,
    SteeringSource,
    SteeringSum,
    TokenGate,
)
from actcache.steering.checks import OPERATORS, PLANE_OPERATORS, STEERED_TOKENS, STEERING_SITES

D = 4
SOURCE = SteeringSource(
    model="org/tiny",
    revision="1234",
    family="llama",
    n_layers=6,
    d_model=D,
    dtype="float32",
    weights_sha256="ab" * 32,
    tokenizer_sha256="cd" * 32,
    template_sha256="ef" * 32,
    store_sha256="01" * 32,
    data_sha256="23" * 32,
    behavior="tidy",
    split="train",
    method="difference_of_means",
    calibration=Calibration(
        metric="read_back", grid=(-1.0, 0.0, 0.5), value=0.5, split="validation"
    ),
)
CAA = Steering(layers=(3,), vectors=np.arange(1, 5)[None], strength=0.5, source=SOURCE)
CAST = Steering(
    operator="rotate",
    site="ln1",
    layers=(2, 4),
    vectors=np.eye(D)[[0, 1, 2, 3]].reshape(2, 2, D),
    strength=30,
    tokens="all",
    window=(0, None),
    gate=PromptGate(layers=(1,), vectors=np.ones((1, D)), threshold=0.25, over="last"),
)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "s.safetensors"


def units(draw, k):
    """Orthonormal planes `[k, 2, d]`."""
    raw = draw(arrays(np.float64, (k, D, D), elements=st.floats(-1, 1, width=32)))
    return np.linalg.qr(raw + 3 * np.eye(D))[0][:, :2]


@st.composite
def steering_fields(draw):
    """Fields of any valid steering of width 4 and at most 8 layers, and of its gate and source."""
    operator = draw(st.sampled_from(OPERATORS))
    tokens = draw(st.sampled_from(STEERED_TOKENS if operator == "add" else STEERED_TOKENS[:3]))
    layers = sorted(draw(st.sets(st.integers(0, 7), min_size=1, max_size=3)))
    layers = layers[:1] if tokens == "front" else layers
    numbers = st.floats(allow_nan=False, allow_infinity=False)
    planes = units(draw, len(layers))
    prompt_gate = st.fixed_dictionaries(
        {
            "layers": st.just((1,)),
            "vectors": st.just(planes[0, :1]),
            "threshold": st.floats(-1, 1),
            "above": st.booleans(),
            "over": st.sampled_from(["mean", "last"]),
        }
    )
    token_gate = st.fixed_dictionaries({"threshold": numbers})
    start = draw(st.integers(0, 5))
    stop = draw(st.none() | st.integers(start + 2, 9))
    text = st.none() | st.text(max_size=5)
    sources = {"model": text, "behavior": text, "n_layers": st.none() | st.just(8)}
    return {
        "operator": operator,
        "site": draw(st.sampled_from(STEERING_SITES)),
        "layers": layers,
        "vectors": planes if operator in PLANE_OPERATORS else planes[:, 0],
        "strength": draw(numbers),
        "tokens": tokens,
        "window": None if tokens == "front" else draw(st.sampled_from([None, (start, stop)])),
        "gate": draw(st.none() | (prompt_gate if tokens == "front" else token_gate | prompt_gate)),
        "renorm": draw(st.booleans()),
        "source": draw(st.none() | st.fixed_dictionaries(sources)),
    }


def make(values):
    # Not in the strategy: type checks of tests draw at random, which hypothesis forbids there.
    gate, source = values["gate"], values["source"]
    if gate is not None:
        gate = (PromptGate if "over" in gate else TokenGate)(**gate)
    source = None if source is None else SteeringSource(**source)
    return Steering(**{**values, "gate": gate, "source": source})


@pytest.mark.slow
@settings(max_examples=30)
@given(drawn=st.lists(steering_fields(), min_size=1, max_size=3))
def test_whatever_is_saved_is_loaded_again(tmp_path_factory, drawn):
    parts = [make(values) for values in drawn]
    path = tmp_path_factory.mktemp("round") / "s.safetensors"
    steering = SteeringSum(tuple(parts))
    steering.save(path)
    loaded = Steering.load(path)

    assert loaded == steering
    for part, original in zip(loaded.parts, parts, strict=True):
        for field in fields(Steering):
            value, expected = getattr(part, field.name), getattr(original, field.name)
            if field.name == "gate" and isinstance(expected, PromptGate):
                np.testing.assert_array_equal(value.vectors, expected.vectors)
            elif field.name == "vectors":
                np.testing.assert_array_equal(value, expected)
            else:
                assert value == expected, field.name
    first = path.read_bytes()
    loaded.save(path)
    assert path.read_bytes() == first


def test_a_file_is_the_same_bytes_everywhere(path):
    """A golden value: files of earlier versions stay readable, and equal ones equal."""
    (CAA + CAST).save(path)
    raw = path.read_bytes()
    length = struct.unpack("<Q", raw[:8])[0]
    header = json.loads(raw[8 : 8 + length])
    assert list(header) == ["__metadata__", "0.vectors", "1.gate.vectors", "1.vectors"]
    assert set(header["__metadata__"]) == {"format", "spec"}
    assert header["__metadata__"]["format"] == "actcache.steering/1"
    assert len(raw) == 8 + length + 4 * (4 + 16 + 4)
    assert length % 8 == 0
    assert (
        sha256(raw).hexdigest()
        == "ab701f8c4c3358fb4dec2ddb87d1b0f56e530b81b2fec1693f06bb5deb231344"
    )
    with safe_open(path, framework="numpy") as file:  # what others read it with
        np.testing.assert_array_equal(file.get_tensor("0.vectors"), CAA.vectors)
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]


def rewrite(path, change=None, tensors=None, metadata=None):
    """Change a saved file's JSON, its arrays or its metadata, as another program could."""
    raw = path.read_bytes()
    length = struct.unpack("<Q", raw[:8])[0]
    header = json.loads(raw[8 : 8 + length])
    about = header.pop("__metadata__")
    spec = json.loads(about["spec"])
    if change is not None:
        spec = change(spec) or spec
    values = {
        name: np.frombuffer(raw[8 + length :], "<f4")[
            entry["data_offsets"][0] // 4 : entry["data_offsets"][1] // 4
        ].reshape(entry["shape"])
        for name, entry in header.items()
    }
    for name, value in (tensors or {}).items():
        if value is None:
            del values[name]
        else:
            values[name] = value
    from safetensors.numpy import save

    changed = {**about, "spec": json.dumps(spec), **(metadata or {})}
    texts = {key: text for key, text in changed.items() if text is not None}
    path.write_bytes(save(values, metadata=texts))


def part(**values):
    def change(spec):
        spec["parts"][0].update(values)

    return change


BAD_SPECS = [
    (part(operator="multiply"), "operator is 'multiply', expected add"),
    (part(layers=[3, 3]), r"layers is \[3, 3\], expected block numbers"),
    (part(layers=[True]), "layers is True, expected a whole number"),
    (part(layers=[7]), "layers is 7, expected 0 to 5, the model's layers"),
    (part(strength="1"), "strength is '1', expected a finite number"),
    (part(strength=None), "strength is None, expected a finite number"),
    (part(strength=[]), r"strength is \[\], expected a finite number"),
    (part(window=[1]), r"window is \[1\], expected a pair"),
    (part(gate="prompt"), "gate.kind is 'prompt', expected token, prompt|gate is str"),
    (part(gate={"kind": "token"}), "gate.threshold is missing"),
    (part(gate={"kind": "row", "threshold": 1}), "gate.kind is 'row', expected token, prompt"),
    (part(gate={"kind": "token", "threshold": 1, "x": 1}), "gate.x is unknown"),
    (part(gate={"kind": "prompt"}), "tensor '0.gate.vectors' is missing"),
    (part(code="print()"), "part 0.code is unknown, expected some of operator"),
    (part(source={"model": "x"}), "source.revision is missing"),
    (part(source=3), "source is int, expected an object of model"),
    (lambda spec: spec["parts"][0].pop("site") and None, "part 0.site is missing"),
    (lambda spec: spec["parts"][0]["source"].update(x=1), "source.x is unknown"),
    (lambda spec: spec["parts"][0]["source"]["calibration"].pop("grid") and None, "source.calibration.grid is missing"),
    (lambda spec: spec["parts"][0]["source"]["calibration"].update(grid=["a"]), "calibration.grid is 'a'"),
    (lambda spec: spec["parts"][0]["source"].update(d_model=5), "vectors is 4 wide, expected 5"),
    (lambda spec: spec.update(x=1), "spec.x is unknown, expected some of digest, parts"),
    (lambda spec: spec.update(parts=[]), r"parts is \[\], expected a list of one or more"),
    (lambda spec: spec.update(parts={}), "parts is {}, expected a list of one or more"),
    (lambda spec: spec["parts"].append(3), "part 1 is int, expected an object"),
    (lambda spec: [spec], "spec is list, expected an object of digest, parts"),
    (part(strength=0.6), "digest is .*, expected .*The file was changed: save it again"),
    (part(strength=float("nan")), "a number is NaN"),
    (part(strength=float("inf")), "a number is Infinity"),
]  # fmt: skip


@pytest.mark.parametrize(("change", "message"), BAD_SPECS)
def test_a_wrong_field_of_the_json_is_refused_by_name(path, change, message):
    CAA.save(path)
    rewrite(path, change)
    with pytest.raises(FormatError, match=message) as error:
        Steering.load(path)
    assert str(error.value).startswith(f"'{path}'")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("steering", "tensors", "message"),
    [
        (CAA, {"0.vectors": np.full((1, D), np.nan, np.float32)}, r"not finite at \[0, 0\]"),
        (CAA, {"0.vectors": np.zeros((1, D), np.float32)}, "vectors is zero at layer 3"),
        (CAA, {"0.vectors": np.ones((2, D), np.float32)}, r"of shape \[2, 4\], expected \[1, d\]"),
        (CAA, {"0.vectors": np.ones((1, D + 1), np.float32)}, "5 wide, expected 4, the model's"),
        (CAA, {"0.vectors": np.ones((1, D), np.float32)}, "digest is"),
        (CAA, {"0.vectors": None}, "tensor '0.vectors' is missing"),
        (CAA, {"9.vectors": np.ones((1, D), np.float32)}, "tensor '9.vectors' is unknown"),
        (CAA, {"0.vectors": np.ones((1, D), np.float16)}, "'0.vectors' is F16, expected F32"),
        (CAA, {"0.vectors": np.ones((1, D), np.int64)}, "'0.vectors' is I64, expected F32"),
        (CAA, {"0.vectors": np.ones((0, D), np.float32)}, r"shape \[0, 4\]"),
        (CAST, {"0.vectors": CAST.vectors * 1.01}, "no orthonormal plane at layer 2"),
        (CAST, {"0.gate.vectors": np.zeros((1, D), np.float32)}, "gate.vectors is zero at layer 1"),
        (CAST, {"0.gate.vectors": None}, "tensor '0.gate.vectors' is missing"),
    ],
)
def test_a_wrong_array_is_refused_by_name(path, steering, tensors, message):
    steering.save(path)
    rewrite(path, tensors=tensors)
    with pytest.raises(FormatError, match=message):
        Steering.load(path)


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        (
            {"format": "actcache.steering/2"},
            "format is 'actcache.steering/2'.*'actcache.steering/1'",
        ),
        ({"format": None}, "format is None"),
        ({"spec": None}, "metadata.spec is missing"),
        ({"x": "1"}, "metadata.x is unknown"),
        ({"spec": "{"}, "Expecting property name"),
        ({"spec": "[" * 100_000}, "maximum recursion depth"),
        ({"spec": '{"digest": ' + "9" * 5000 + "}"}, "is no steering file"),
        ({"spec": "3"}, "spec is int"),
    ],
)
def test_another_format_or_broken_json_is_refused(path, metadata, message):
    CAA.save(path)
    rewrite(path, metadata=metadata)
    with pytest.raises(FormatError, match=message) as error:
        Steering.load(path)
    assert "\n" not in str(error.value)


def test_every_cut_and_every_changed_byte_is_refused_or_harmless(path):
    """A changed byte gives an error that a user can mend, or the same steering: never another."""
    CAA.save(path)
    raw = path.read_bytes()
    for end in range(0, len(raw), 23):
        path.write_bytes(raw[:end])
        with pytest.raises(FormatError, match=r"Pass a file that Steering\.save wrote"):
            Steering.load(path)
    rng = np.random.default_rng(0)
    for place in range(0, len(raw), 11):
        changed = bytearray(raw)
        changed[place] ^= 1 << rng.integers(8)
        path.write_bytes(changed)
        with suppress(ActcacheError):
            assert Steering.load(path) == CAA


@pytest.mark.parametrize("magic", [b"\0\0\0\0", b"GGUF"])
def test_a_huge_file_is_refused_by_its_size(path, magic):
    with path.open("wb") as file:
        file.write(magic)
        file.truncate(10 << 30)  # sparse: takes no space on disk
    with pytest.raises(FormatError, match="10737418240 bytes, at most 67108864"):
        Steering.load(path)


def test_a_huge_header_is_refused_before_it_is_read(path):
    text = b'{"__metadata__":{"format":"actcache.steering/1"}}' + b" " * (2 << 20)
    path.write_bytes(struct.pack("<Q", len(text)) + text)
    with pytest.raises(FormatError, match=f"a header of {len(text)} bytes, at most 1048576"):
        Steering.load(path)


def test_nothing_that_is_no_file_is_opened(tmp_path):
    with pytest.raises(StoreNotFoundError, match=r"Pass a file that Steering\.save wrote"):
        Steering.load(tmp_path / "no.safetensors")
    with pytest.raises(StoreNotFoundError):
        Steering.load(tmp_path)
    (tmp_path / "pickle").write_bytes(b"\x80\x04cos\nsystem\n")
    with pytest.raises(FormatError):
        Steering.load(tmp_path / "pickle")


IDENTITY = {
    "family": "llama",
    "n_layers": 6,
    "d_model": D,
    "dtype": "float32",
    "weights_sha256": "ab" * 32,
    "tokenizer_sha256": "cd" * 32,
    "template_sha256": "ef" * 32,
}


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("family", "gpt2"),
        ("n_layers", 12),
        ("dtype", "bfloat16"),
        ("weights_sha256", "00" * 32),
        ("tokenizer_sha256", "00" * 32),
        ("template_sha256", "00" * 32),
    ],
)
def test_another_model_is_refused_by_field_unless_it_is_asked_for(path, name, value):
    CAA.save(path)
    assert Steering.load(path, model=IDENTITY) == CAA
    assert Steering.load(path, model={"family": "llama"}) == CAA  # what is not known agrees
    other = {**IDENTITY, name: value}
    with pytest.raises(MismatchError, match=f"differ in '{name}': stored .*other_model=True"):
        Steering.load(path, model=other)
    assert Steering.load(path, model=other, other_model=True) == CAA


def test_a_model_of_another_width_or_too_few_layers_is_always_refused(path):
    bare = replace(CAA, source=None)
    for steering in (CAA, bare):
        steering.save(path)
        for other_model in (False, True):
            with pytest.raises(MismatchError, match="'d_model': stored 4, found 8"):
                Steering.load(path, model={**IDENTITY, "d_model": 8}, other_model=other_model)
    with pytest.raises(MismatchError, match="steers layer 3, and the model has 3, expected 0 to 2"):
        bare.require_model({**IDENTITY, "n_layers": 3})
    gated = replace(bare, gate=PromptGate(layers=(5,), vectors=np.ones((1, D)), threshold=0))
    with pytest.raises(MismatchError, match="steers layer 5"):
        gated.require_model({**IDENTITY, "n_layers": 5}, other_model=True)


def test_a_steering_too_large_to_be_read_again_is_not_saved(path):
    huge = Steering(layers=tuple(range(3)), vectors=np.ones((3, 6 << 20), np.float32))
    with pytest.raises(FormatError, match="Save its parts one by one"):
        huge.save(path)
    assert not path.exists()
