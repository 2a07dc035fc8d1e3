"""The steering object: what it refuses, its algebra, and the digest that names a configuration."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from actcache.errors import ActcacheError
from actcache.steering import (
    Calibration,
    PromptGate,
    Steering,
    SteeringSource,
    SteeringSum,
    TokenGate,
)
from actcache.steering.checks import OPERATORS, PLANE_OPERATORS

D = 6
EYE = np.eye(D, dtype=np.float32)
PLANE = EYE[None, :2]
GATE = PromptGate(layers=(1,), vectors=EYE[:1], threshold=0.1)


def steering(**fields):
    """A valid steering, with some fields changed."""
    operator = fields.get("operator", "add")
    vectors = EYE[None, :2] if operator in PLANE_OPERATORS else EYE[:1]
    return Steering(**{"layers": (3,), "vectors": vectors, **fields})


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"operator": "multiply"}, "operator is 'multiply', expected add, ablate.*Pass one"),
        ({"site": "resid_mid"}, "site is 'resid_mid', expected resid_post.*Pass one"),
        ({"tokens": "last"}, "tokens is 'last', expected prompt.*Pass one"),
        ({"layers": ()}, r"layers is \[\], expected block numbers.*Sort them"),
        ({"layers": (3, 3)}, r"layers is \[3, 3\], expected block numbers from 0, each once"),
        ({"layers": (4, 3)}, r"layers is \[4, 3\], .*Sort them, and their vectors"),
        ({"layers": (-1,)}, r"layers is \[-1\], expected block numbers from 0"),
        ({"layers": (True,)}, "layers is True, expected a whole number"),
        ({"layers": (1.5,)}, "layers is 1.5, expected a whole number"),
        ({"layers": 3}, r"layers is 3, expected several block numbers. Pass for example \(13,\)"),
        ({"layers": "3"}, "layers is '3', expected several block numbers"),
        ({"vectors": EYE[0]}, r"vectors is of shape \[6\], expected \[1, d\], a vector a layer"),
        ({"vectors": EYE[:2]}, r"vectors is of shape \[2, 6\], expected \[1, d\]"),
        ({"vectors": PLANE}, r"vectors is of shape \[1, 2, 6\], expected \[1, d\]"),
        ({"vectors": EYE[:1] * np.nan}, r"vectors is not finite at \[0, 0\]"),
        ({"vectors": EYE[:1] * np.float64(1e39)}, r"vectors is not finite at \[0, 0\]"),
        ({"vectors": EYE[:1] * 0}, "vectors is zero at layer 3, .*Leave that layer out"),
        ({"vectors": [["a"] * D]}, "vectors is of dtype <U1 and shape .* an array of numbers"),
        ({"vectors": [[1.0], [1.0, 2.0]]}, "vectors is of dtype object and shape"),
        ({"vectors": EYE[:0]}, r"vectors is of dtype float32 and shape \[0, 6\]"),
        ({"strength": np.nan}, "strength is nan, expected a finite number"),
        ({"strength": 10**400}, "strength is 1000.*, expected a finite number"),
        ({"strength": "1"}, "strength is '1', expected a finite number"),
        ({"strength": True}, "strength is True, expected a finite number"),
        ({"window": (2, 2)}, "window is 2:2, expected 0 ≤ start < stop"),
        ({"window": (-1, None)}, "window is -1:, expected 0 ≤ start < stop"),
        ({"window": (0, 1, 2)}, r"window is \(0, 1, 2\), expected a pair .*Pass \(0, 1\)"),
        ({"window": 4}, "window is 4, expected a pair"),
        ({"window": (0.0, 1)}, "window start is 0.0, expected a whole number"),
        ({"window": (0, 1), "tokens": "completion"}, "window is 0:1, .*pass tokens='prompt'"),
        ({"gate": 0.5}, "gate is 0.5, expected a TokenGate, a PromptGate or None"),
        (
            {"gate": PromptGate(layers=(1,), vectors=np.ones((1, 1)), threshold=0)},
            "gate.vectors is 1 wide, expected 6, as vectors are",
        ),
        ({"renorm": 1}, "renorm is 1, expected True or False"),
        ({"source": "tidy"}, "source is 'tidy', expected a SteeringSource or None"),
        ({"tokens": "front", "operator": "ablate"}, "operator is ablate, expected 'add' with"),
        ({"tokens": "front", "layers": (1, 2)}, r"layers is \(1, 2\), expected one layer with"),
        ({"tokens": "front", "window": (0, 2)}, r"window is \(0, 2\), expected None with"),
        (
            {"tokens": "front", "gate": TokenGate()},
            "gate is a TokenGate, expected a PromptGate or None with",
        ),
        ({"tokens": "front", "vectors": EYE * 0}, "vectors is zero, expected a direction at some"),
        (
            {"tokens": "front", "vectors": PLANE},
            r"\[1, 2, 6\], expected \[d, d\], a vector a token",
        ),
        ({"operator": "ablate", "vectors": EYE[:1] * 1.001}, "of norm 1.001 at layer 3.*Divide by"),
        ({"operator": "set", "vectors": EYE[:1] * 2}, "of norm 2 at layer 3, expected norm 1"),
        ({"operator": "rotate", "vectors": EYE[:1]}, r"expected \[1, 2, d\], a plane a layer for"),
        (
            {"operator": "rotate", "vectors": PLANE * 1.001},
            r"no orthonormal plane at layer 3 \(norms 1.001 and 1.001, inner product 0\)",
        ),
        (
            {"operator": "turn_to", "vectors": [[EYE[0], EYE[0]]]},
            r"\(norms 1 and 1, inner product 1\).*Orthonormalise",
        ),
        ({"operator": "turn_to", "vectors": PLANE * 0}, "no orthonormal plane .*norms 0 and 0"),
    ],
)
def test_a_wrong_field_is_refused_by_name_in_one_line(fields, message):
    with pytest.raises(ActcacheError, match=f"(?s)^steering: .*{message}") as error:
        steering(**fields)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"threshold": 2.0}, "gate.threshold is 2.0, expected a cosine, from -1 to 1"),
        ({"vectors": EYE}, r"gate.vectors is of shape \[6, 6\], expected \[1, d\]"),
        ({"vectors": EYE[:1] * 0}, "gate.vectors is zero at layer 1"),
        ({"layers": [2, 2]}, r"gate.layers is \[2, 2\]"),
        ({"over": "first"}, "gate.over is 'first', expected mean, last"),
        ({"above": "no"}, "gate.above is 'no', expected True or False"),
    ],
)
def test_a_wrong_field_of_a_gate_is_refused(fields, message):
    with pytest.raises(ActcacheError, match=message):
        PromptGate(**{"layers": (1,), "vectors": EYE[:1], "threshold": 0.1, **fields})
    with pytest.raises(ActcacheError, match=r"gate\.threshold is inf"):
        TokenGate(threshold=float("inf"))


@pytest.mark.parametrize("nudge", [0.9e-6, 1.1e-6])
def test_planes_and_units_are_orthonormal_to_a_millionth(nudge):
    tilted = np.array([[EYE[0], EYE[1] + np.float32(nudge) * EYE[0]]])
    if nudge < 1e-6:
        Steering(operator="rotate", layers=(0,), vectors=tilted)
    else:
        with pytest.raises(ActcacheError, match="no orthonormal plane at layer 0"):
            Steering(operator="rotate", layers=(0,), vectors=tilted)


@pytest.mark.parametrize(
    "field", ["operator", "site", "tokens", "layers", "strength", "window", "gate"]
)
@pytest.mark.parametrize("value", [np.ones((40, 40)), ["x"] * 1000, "x\ny" * 1000, {"a": 1}, b"x"])
def test_whatever_a_field_is_the_message_is_one_short_line(field, value):
    with pytest.raises(ActcacheError) as error:
        replace(steering(), **{field: value})
    assert len(str(error.value)) < 300
    assert "\n" not in str(error.value)


def test_fields_are_made_plain():
    """Lists, float64 and numpy numbers become tuples, float32 and Python's own."""
    given = EYE[:2].astype(np.float64)
    made = steering(
        layers=[np.int64(1), 2], vectors=given, strength=np.float32(0.5), window=[0, None]
    )
    assert made.layers == (1, 2)
    assert [type(layer) for layer in made.layers] == [int, int]
    assert type(made.strength) is float
    assert made.window == (0, None)
    assert made.vectors.dtype == np.float32
    given[:] = 7
    np.testing.assert_array_equal(made.vectors, EYE[:2])
    with pytest.raises(ValueError, match="read-only"):
        made.vectors[0] = 0
    assert made.at(2).vectors is made.vectors  # a grid holds its vectors once
    single = EYE[:1].copy()
    made = steering(vectors=single)
    single[:] = 7  # the caller's array stays theirs
    np.testing.assert_array_equal(made.vectors, EYE[:1])
    view = single.view()
    view.flags.writeable = False  # but what it is a view of is not
    made = steering(vectors=view)
    single[:] = 8
    np.testing.assert_array_equal(made.vectors, EYE[:1] * 0 + 7)
    assert made.d_model == D


def test_front_takes_a_matrix_with_zero_rows():
    """Both prompts of ActAdd begin with BOS, whose residuals are equal."""
    rows = EYE.copy()
    rows[0] = 0
    assert Steering(tokens="front", layers=(2,), vectors=rows, gate=GATE).vectors.shape == (D, D)


@pytest.mark.parametrize("operator", OPERATORS)
def test_a_factor_multiplies_the_strength_where_some_strength_changes_nothing(operator):
    made = steering(operator=operator, strength=30)
    assert made.at(-4).strength == -4.0
    if operator in ("set", "turn_to"):
        with pytest.raises(ActcacheError, match=rf"'{operator}', whose .*steering.at\(strength\)"):
            _ = made * 0.5
    else:
        assert (made * 0.5).strength == 15.0
        assert np.float64(0.5) * made == 0.5 * made == made * 0.5
        assert (made * 0).strength == made.identity[operator]
    with pytest.raises(ActcacheError, match="factor is nan"):
        _ = steering() * float("nan")
    with pytest.raises(ActcacheError, match="strength is inf"):
        _ = steering(strength=1e200) * 1e200


def test_a_sum_keeps_the_order_and_is_flat():
    a, b, c = (steering(strength=strength) for strength in (1, 2, 3))
    total = a + (b + c)
    assert total.parts == (a, b, c) == ((a + b) + c).parts
    assert [part.strength for part in (2 * total).parts] == [2, 4, 6]
    assert [part.strength for part in total.at(0.5).parts] == [0.5] * 3
    assert total == SteeringSum((a + b, c))
    assert total != c + b + a
    assert SteeringSum((a,)) == a
    with pytest.raises(TypeError):
        _ = a + 1
    with pytest.raises(ActcacheError, match="a sum is empty"):
        SteeringSum(())
    with pytest.raises(ActcacheError, match=r"of vectors \[6, 5\] wide, expected one width"):
        _ = a + Steering(layers=(1,), vectors=np.ones((1, 5)))


def test_a_sum_of_several_units_has_no_one_strength():
    a, b = steering(), steering(operator="rotate", strength=30)
    with pytest.raises(ActcacheError, match="of strengths in multiplier, degrees, expected one"):
        (a + b).at(0.5)
    assert [part.strength for part in (0.5 * (a + b)).parts] == [0.5, 15]
    both = steering(operator="turn_to") + b
    assert [part.strength for part in both.at(90).parts] == [90, 90]


def test_it_is_shown_in_a_line():
    a = steering(strength=0.5)
    assert repr(a) == f"<Steering {a.digest[:8]}: add 0.5 at resid_post of layers [3]>"
    assert repr(a + a).endswith("layers [3] + add 0.5 at resid_post of layers [3]>")


CHANGES: list[dict[str, Any]] = [
    {"operator": "set"},
    {"site": "ln1"},
    {"layers": (4,)},
    {"vectors": EYE[1:2]},
    {"strength": 1.5},
    {"tokens": "all"},
    {"window": (0, 4)},
    {"window": (0, None)},
    {"gate": TokenGate()},
    {"gate": TokenGate(threshold=0.1)},
    {"gate": GATE},
    {"gate": replace(GATE, layers=(2,))},
    {"gate": replace(GATE, vectors=EYE[1:2])},
    {"gate": replace(GATE, threshold=0.2)},
    {"gate": replace(GATE, above=False)},
    {"gate": replace(GATE, over="last")},
    {"renorm": True},
]


def test_the_digest_names_the_configuration():
    """Whatever changes what is done changes it; where the steering comes from does not."""
    plain = steering()
    variants = [plain, *(steering(**change) for change in CHANGES), plain + plain]
    assert len({one.digest for one in variants}) == len(variants) == len(set(variants))
    assert steering(strength=-0.0) == steering(strength=0)
    source = SteeringSource(model="tiny", behavior="tidy")
    assert replace(plain, source=source) == plain
    assert plain != "plain"


def test_the_digest_is_the_same_on_every_machine():
    """A golden value: results of earlier versions are resumed by it."""
    made = steering(gate=GATE, window=(0, 4)) + steering(operator="rotate", strength=30)
    assert made.digest == "c956ed0a756305188f1ed49e9001e69e893bd2ea9dc2fc99fd9e9ede1425c0a0"


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"n_layers": 0}, "source.n_layers is 0, expected 1 or more"),
        ({"d_model": 2.0}, "source.d_model is 2.0, expected a whole number"),
        ({"behavior": 3}, "source.behavior is 3, expected text or None"),
        ({"model": "\ud800"}, "source.model is .*, expected text that UTF-8 can write"),
        ({"calibration": 1}, "source.calibration is 1, expected a Calibration or None"),
    ],
)
def test_a_wrong_source_is_refused_by_field(fields, message):
    with pytest.raises(ActcacheError, match=message):
        SteeringSource(**fields)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"metric": None}, "calibration.metric is None, expected text"),
        ({"grid": 1.0}, "calibration.grid is 1.0, expected several numbers"),
        ({"grid": (0, "x")}, "calibration.grid is 'x', expected a finite number"),
        ({"value": None}, "calibration.value is None, expected a finite number"),
    ],
)
def test_a_wrong_calibration_is_refused_by_field(fields, message):
    good = {"metric": "read_back", "grid": (0, 1), "value": 1, "split": "validation"}
    with pytest.raises(ActcacheError, match=message):
        Calibration(**{**good, **fields})
