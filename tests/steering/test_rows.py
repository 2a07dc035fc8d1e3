"""The rows of a batch as tensors: which columns are steered, in which order, and row selection."""

from dataclasses import replace
from itertools import product

import numpy as np
import pytest
import torch

from actcache.engine.model import adopt_model
from actcache.engine.sites import find_taps
from actcache.steering import PromptGate, Steering, SteeringSum, TokenGate
from actcache.steering.rows import Columns, SteeredRows
from tests.reference.steering import steered_positions
from tests.steering.cases import Family
from tests.support.tiny import make

pytestmark = pytest.mark.model
WIDTH, D = 6, 32
STARTS = torch.tensor([0, 2, 4, 5])


@pytest.fixture(scope="module")
def model():
    return adopt_model(make("llama"))


def steering(**fields):
    return Steering(**{"layers": (1,), "vectors": np.ones((1, D), np.float32), **fields})


def steered_columns(model, part: Steering, passes) -> list[list[int]]:
    """The columns of each row that `part` steers, in passes `(first, t)` with a cache."""
    rows = SteeredRows(model, [part] * len(STARTS))
    steered: list[list[int]] = [[] for _ in STARTS]
    for first, t in passes:
        columns = Columns(first=first, prompt_width=WIDTH, starts=STARTS)
        changed = rows.apply("resid_post", 1, torch.zeros(len(STARTS), t, D), columns).any(-1)
        for row, column in changed.nonzero().tolist():
            if first + column >= STARTS[row]:  # padding may be steered: no token sees it
                steered[row].append(first + column)
    return steered


WHOLE, CHUNKED = [(0, 6), (6, 1), (7, 1), (8, 1)], [(0, 3), (3, 3), (6, 2), (8, 1)]


WINDOWS = (None, (0, 1), (0, 3), (1, None), (2, 3), (0, None), (7, 9))
ROLES = [
    *product(("prompt", "all"), WINDOWS),
    *(("completion", window) for window in WINDOWS if window != (0, 1)),
    ("front", None),
]


@pytest.mark.parametrize("passes", [WHOLE, CHUNKED, [(0, 9)]], ids=["cache", "chunks", "no cache"])
@pytest.mark.parametrize(("tokens", "window"), ROLES)
def test_each_token_is_steered_once_as_its_role_says(model, tokens, window, passes):
    vectors = np.ones((2 if tokens == "front" else 1, D), np.float32)
    part = steering(tokens=tokens, window=window, vectors=vectors)

    steered = steered_columns(model, part, passes)

    for row, start in enumerate(STARTS.tolist()):
        meant = steered_positions(part, WIDTH - start, 9 - start)
        assert steered[row] == [start + position for position in meant]


def test_parts_at_one_place_are_applied_in_order_and_rounded_once(model):
    half = adopt_model(make("llama", dtype=torch.bfloat16))
    value = torch.full((2, 1, D), 256.0, dtype=torch.bfloat16)
    one = steering(tokens="all", strength=0.75)  # half of bfloat16's step at 256 is 1
    double = steering(
        operator="set", vectors=np.eye(D, dtype=np.float32)[:1], strength=3.0, tokens="all"
    )
    columns = Columns(first=0, prompt_width=1)

    both = SteeredRows(half, [one + one, one]).apply("resid_post", 1, value, columns)
    order = SteeredRows(model, [one + double, double + one]).apply(
        "resid_post", 1, torch.zeros(2, 1, D), columns
    )

    assert both[0].unique().tolist() == [258.0]
    assert both[1].unique().tolist() == [256.0]
    assert order[:, 0, 0].tolist() == [3.0, 3.75]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_norms_in_half_precision_are_of_float32(dtype):
    """The norm of this residual is 170 000, beyond float16; a turn or renorm must keep it."""
    case = Family("llama", dtype=dtype)
    value = torch.from_numpy(30_000 * np.sign(case.rng.normal(size=(3, 1, D)))).to(dtype)
    turns = [case.steering(op, "resid_post", (1,), tokens="all") for op in ("rotate", "turn_to")]
    push = case.steering("add", "resid_post", (1,), tokens="all", renorm=True).at(15_000.0)

    steered = SteeredRows(case.model, [*turns, push]).apply(
        "resid_post", 1, value, Columns(first=0, prompt_width=1)
    )

    change = (steered.double().norm(dim=-1) / value.double().norm(dim=-1) - 1).abs()
    assert steered.isfinite().all()
    assert change.max() <= torch.finfo(dtype).eps
    assert (steered != value).any(-1).all()


def test_two_names_of_one_module_are_one_place():
    """Gemma's norm behind attention is what attention adds; both names act there in order."""
    gemma = adopt_model(make("gemma2"))
    push = steering(site="attn_out", tokens="all")
    set_to = steering(
        site="ln1_post", operator="set", vectors=np.eye(D, dtype=np.float32)[:1], tokens="all"
    )

    rows = SteeredRows(gemma, [push + set_to, set_to + push])

    [place] = rows.taps
    steered = rows.apply(*place, torch.zeros(2, 1, D), Columns(first=0, prompt_width=1))
    assert steered[:, 0, 0].tolist() == [1.0, 2.0]


def test_selected_rows_keep_their_steering_and_may_repeat():
    case = Family("llama")
    kinds = [x for x in case.every_kind() if not isinstance(x.parts[0].gate, PromptGate)]
    # Besides single rows, a group of rows that differ in strength, vector, gate or length.
    group = [
        case.steering("add", "resid_post", (1,), gate=TokenGate(threshold=t), tokens="all").at(
            t + 1
        )
        for t in (0.0, 0.5, 1.0, 1.5, 2.0)
    ]
    fronts = [case.front("resid_post", k, None) for k in (1, 3, 2)]
    steerings = [None, *kinds[::5], *group, *fronts]
    rows = SteeredRows(case.model, steerings)
    rng = np.random.default_rng(0)
    chosen = np.concatenate([rng.permutation(len(steerings))[:-6], [3, 3, 5]])
    starts = torch.from_numpy(rng.integers(0, 4, len(steerings)))
    columns = Columns(first=0, prompt_width=5, starts=starts)
    some = replace(columns, starts=starts[chosen])

    selected = rows.select(chosen)

    assert selected.n_rows == len(chosen)
    assert selected.first_blocks == [rows.first_blocks[row] for row in chosen]
    changed = 0
    for site, layer in rows.taps:
        value = torch.from_numpy(rng.normal(size=(len(steerings), 7, D)).astype(np.float32))
        before = value.clone()
        true = rows.apply(site, layer, value, columns)[chosen]
        assert torch.equal(value, before)  # the module's own output stays as it is
        assert torch.equal(selected.apply(site, layer, value[chosen], some), true)
        changed += int((true != value[chosen]).any())
    assert changed > len(rows.taps) / 2
    none = rows.select(np.array([0]))
    value = torch.ones(1, 7, D)
    assert none.apply("resid_post", 1, value, Columns(first=0, prompt_width=5)) is value


def test_rows_of_one_array_share_it_and_rows_of_their_own_do_not(model):
    shared = steering()
    rng = np.random.default_rng(0)
    rows = SteeredRows(model, [shared.at(strength) for strength in (1, 2, 3)])
    distinct = SteeredRows(
        model, [steering(vectors=rng.normal(size=(1, D)).astype(np.float32)) for _ in range(3)]
    )

    [[group]] = rows._groups.values()
    assert len(group.vectors) == 1
    [[group]] = distinct._groups.values()
    assert len(group.vectors) == 3


@pytest.mark.parametrize(
    ("site", "first"),
    [("resid_post", 3), ("resid_pre", 2), ("ln1", 2), ("ln2", 2), ("attn_out", 2), ("mlp_out", 2)],
)
def test_the_first_block_that_a_row_must_run_itself(model, site, first):
    part = steering(site=site, layers=(2, 3), vectors=np.ones((2, D), np.float32))
    late = steering(layers=(3,))

    rows = SteeredRows(model, [None, part, part + late, late, late.at(0), part.at(0) + late])

    assert rows.first_blocks == [4, first, first, 4, 4, 4]


@pytest.mark.parametrize("operator", ["add", "set", "ablate", "turn_to"])
@pytest.mark.parametrize("gate", [None, TokenGate(threshold=1.0)], ids=["open", "gate"])
def test_a_size_is_of_what_a_block_adds_where_it_scales_that(operator, gate):
    """Granite multiplies what attention puts out by 0.5: λ is in units of the product."""
    case = Family("granite")
    part = case.steering(operator, "attn_out", (1,), tokens="all", gate=gate)
    value = torch.from_numpy(case.rng.normal(size=(1, 4, D)).astype(np.float32))
    [tap] = SteeredRows(case.model, [part]).taps.values()
    plain = SteeredRows(adopt_model(make("llama")), [replace(part, site="resid_post")])
    columns = Columns(first=0, prompt_width=4)

    scaled = SteeredRows(case.model, [part]).apply("attn_out", 1, value, columns)

    assert tap == find_taps(case.model.anatomy, "attn_out")[1]
    assert tap.scale == 0.5
    true = plain.apply("resid_post", 1, 0.5 * value, columns)
    torch.testing.assert_close(0.5 * scaled, true, rtol=1e-6, atol=1e-6)


def test_a_sum_and_its_parts_alone_give_the_same_groups(model):
    one = steering(tokens="all")

    alone = SteeredRows(model, [one])
    summed = SteeredRows(model, [SteeringSum((one,))])

    value, columns = torch.zeros(1, 3, D), Columns(first=0, prompt_width=3)
    assert torch.equal(
        alone.apply("resid_post", 1, value, columns), summed.apply("resid_post", 1, value, columns)
    )
