"""Split attention of joined cells: against one softmax, the dense mask, and where it is refused."""

import numpy as np
import pytest
import torch
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from actcache.engine.forward import JoinedCells, run_trees
from actcache.engine.model import adopt_model
from actcache.engine.split_attention import NodeMasks, attend_in_two_parts, can_split
from actcache.engine.steered_scores import SteeringRule, score_grid
from actcache.prompts.render import Rendered
from actcache.prompts.token_tree import Tree, pack_trees
from tests.reference.engine import cell_attention
from tests.support.tiny import FAMILIES, make, ragged_rows, random_tokens

SPLIT = [
    (family, attention)
    for family, attention in FAMILIES
    if attention == "sdpa" or family == "gpt_neo"
]
"""The families that have sdpa attention, and GPT-Neo: all but Gemma 2 and Bloom."""


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("kv_heads", [4, 2])
@pytest.mark.parametrize("windows", [False, True])
def test_two_parts_make_one_softmax(dtype, kv_heads, windows):
    generator = torch.Generator().manual_seed(0)
    b, cells, nodes, t, e = 3, 2, 3, 7, 5

    def some(heads: int, tokens: int) -> torch.Tensor:
        return torch.randn(b, tokens, heads, e, generator=generator).transpose(1, 2).to(dtype)

    query, key, value = (some(heads, cells * nodes) for heads in (4, kv_heads, kv_heads))
    tree_keys, tree_values = some(kv_heads, t + 2), some(kv_heads, t + 2)
    prefix = torch.ones(b, nodes, t, dtype=torch.bool)
    prefix[0, :, :3] = False  # padding
    prefix[1] = False  # no prefix at all
    if windows:
        prefix[2, 1, :2] = prefix[2, 2, :5] = False
        prefix[0, 2] = False  # a window that ends within the cell
    of_cell = torch.ones(b, nodes, nodes, dtype=torch.bool).tril()
    of_cell[:, 2, 1] = False  # two branches

    split = attend_in_two_parts(
        query, key, value, tree_keys, tree_values, NodeMasks(prefix, of_cell), scale=0.3
    )

    tensors = (query, key, value, tree_keys, tree_values, prefix, of_cell)
    whole = cell_attention(*(x.double().numpy() for x in tensors), scale=0.3)
    assert split.dtype == dtype
    room = {torch.float64: 1e-14, torch.float32: 1e-6, torch.bfloat16: 2e-2}[dtype]
    np.testing.assert_allclose(split.double(), whole, rtol=0, atol=room)


@pytest.mark.model
@pytest.mark.parametrize(("family", "attention"), FAMILIES)
def test_families_with_sdpa_and_gpt_neo_split(family, attention):
    model = adopt_model(make(family, attention=attention), name=family)

    assert can_split(model.anatomy) == ((family, attention) in SPLIT)


def shapes() -> dict[str, list[Rendered]]:
    """Rows by what is special about them; the window of Mistral and Gemma 3 is 8 tokens."""
    rng = np.random.default_rng(1)

    def row(prompt: int, shared: int, positive: int, negative: int) -> Rendered:
        chain, start, first, second = (
            random_tokens(rng, n) for n in (prompt, shared, positive, negative)
        )
        return Rendered(chain, start, first, second)

    return {
        "ragged": ragged_rows(),
        "one row": [row(11, 1, 2, 2)],
        "no prefix": [row(1, 0, 2, 3), row(1, 0, 4, 1)],
        "branches longer than the window": [row(20, 2, 12, 1), row(3, 0, 2, 10)],
    }


RULES = (("prompt", "logit"), ("completion", "logprob"), ("fork", "letter"))
"""What is steered and scored; cells of the last have one token."""


def stop_rounding(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let float64 stay float64 where a family's code asks for float32."""
    convert, narrow = torch.Tensor.to, torch.Tensor.float

    def to(tensor, *target, **how):
        if tensor.dtype == torch.float64 and target[:1] == (torch.float32,):
            return tensor
        return convert(tensor, *target, **how)

    def to_float(tensor):
        return tensor if tensor.dtype == torch.float64 else narrow(tensor)

    monkeypatch.setattr(torch.Tensor, "to", to)
    monkeypatch.setattr(torch.Tensor, "float", to_float)


@pytest.mark.model
@pytest.mark.parametrize(
    ("family", "attention", "dtype"),
    [
        (family, attention, dtype)
        for family, attention in SPLIT
        for dtype in (torch.float32, torch.float64)
        if (family, dtype)
        not in (
            ("mixtral", torch.float64),  # torch has no grouped product in float64
            ("gpt_neo", torch.float32),
        )
    ],
)
def test_split_equals_dense(family, attention, dtype, monkeypatch):
    if family == "gpt_neo":
        # It rounds queries and keys to float32 whatever the dtype, and multiplies them without a
        # scale. Its float32 is held against the truth by the test below.
        stop_rounding(monkeypatch)
    model = adopt_model(make(family, dtype=dtype, attention=attention), name=family)
    directions = torch.randn(2, 4, 32, generator=torch.Generator().manual_seed(1))

    for rows in shapes().values():
        for first_steered, score in RULES:
            split, dense = (
                score_grid(
                    model,
                    rows,
                    directions=directions,
                    multipliers=[-1.5, 0.0, 1.0],
                    rule=SteeringRule(first_steered=first_steered, score=score),
                    layers=range(4),
                    dense=dense,
                )
                for dense in (False, True)
            )
            # Sums of up to 12 logits, of size 100: a few units in their last place.
            rtol, atol = (1e-6, 5e-6) if dtype == torch.float32 else (1e-14, 1e-13)
            np.testing.assert_allclose(split, dense, rtol=rtol, atol=atol)


@pytest.mark.model
def test_gpt_neos_split_is_as_near_the_truth_as_its_dense_mask(monkeypatch):
    """In float32, where both differ from float64 throughout by more than from one another."""
    directions = torch.randn(2, 4, 32, generator=torch.Generator().manual_seed(1))

    def scores(dtype, rows, first_steered, score, *, dense):
        return score_grid(
            adopt_model(make("gpt_neo", dtype=dtype, attention="eager"), name="gpt_neo"),
            rows,
            directions=directions,
            multipliers=[-1.5, 0.0, 1.0],
            rule=SteeringRule(first_steered=first_steered, score=score),
            layers=range(4),
            dense=dense,
        )

    for rows in shapes().values():
        for rule in RULES:
            split, dense = (scores(torch.float32, rows, *rule, dense=x) for x in (False, True))
            with monkeypatch.context() as patch:
                stop_rounding(patch)
                truth = scores(torch.float64, rows, *rule, dense=True)
            assert np.abs(split - truth).max() <= np.abs(dense - truth).max() + 1e-6


def joined_pass(model, *, dense=False, n_cells=2):
    """Run cells of three nodes, a fork and two branches, through the last two blocks."""
    tree = pack_trees([Tree((5, 6, 7, 8), [(9,), (10,)]), Tree((11, 12), [(13,), (14,)])], pad=0)
    columns = torch.from_numpy(tree.branch_starts.min(1, keepdims=True)) + torch.tensor([-1, 0, 1])
    result = run_trees(model.anatomy, tree, read=columns, keep_cache=True)
    cells = JoinedCells(
        model.anatomy,
        result,
        columns=columns,
        live=torch.ones(2, 3, dtype=torch.bool),
        prefix=torch.from_numpy(tree.valid) & (torch.arange(6) < columns[:, :1]),
        n_cells=n_cells,
        dense=dense,
    )
    start = result.residuals[:, 1].repeat(1, n_cells, 1)
    joined = cells.run_block(3, cells.run_block(2, start + start.roll(1, 1)))
    return cells, joined


@pytest.mark.model
@pytest.mark.parametrize(("family", "attention"), SPLIT)
def test_no_block_of_these_families_falls_back(family, attention):
    model = adopt_model(make(family, attention=attention), name=family)

    cells, joined = joined_pass(model)
    _, dense = joined_pass(model, dense=True)

    assert not cells.dense
    torch.testing.assert_close(joined, dense, rtol=1e-6, atol=1e-5)
    assert ALL_ATTENTION_FUNCTIONS["sdpa"] is sdpa_attention_forward


def biased(attend):
    """A relative bias in the family's call, as T5 has."""
    return lambda module, query, key, value, mask, **settings: attend(
        module, query, key, value, mask, **settings, position_bias=torch.arange(key.shape[2]) / 3.0
    )


def changed_keys(attend):
    """Keys that are changed after the cache returned them."""
    return lambda module, query, key, value, mask, **settings: attend(
        module, query, 2 * key, value, mask, **settings
    )


def twice(attend):
    """Two softmaxes in a block, as differential attention has."""

    def call(*inputs, **settings):
        return attend(*inputs, **settings)[0] - 0.5 * attend(*inputs, **settings)[0], None

    return call


def of_its_own(_attend):
    """Attention that does not ask the interface."""
    return sdpa_attention_forward


@pytest.mark.model
@pytest.mark.parametrize("change", [biased, changed_keys, twice, of_its_own])
def test_what_is_not_known_to_split_stays_dense(change, monkeypatch):
    model = adopt_model(make("llama"), name="llama")
    _, plain = joined_pass(model)
    get_interface = type(ALL_ATTENTION_FUNCTIONS).get_interface
    monkeypatch.setattr(
        type(ALL_ATTENTION_FUNCTIONS),
        "get_interface",
        lambda *inputs: change(get_interface(*inputs)),
    )

    cells, joined = joined_pass(model)
    _, dense = joined_pass(model, dense=True)

    assert cells.dense
    assert torch.equal(joined, dense)
    assert change is of_its_own or (joined - plain).abs().max() > 1e-3
    assert ALL_ATTENTION_FUNCTIONS["sdpa"] is sdpa_attention_forward


@pytest.mark.model
def test_masks_do_not_grow_with_cells():
    model = adopt_model(make("llama"), name="llama")

    few, many, dense = (
        joined_pass(model, n_cells=n, dense=dense)[0].mask_bytes
        for n, dense in ((2, False), (372, False), (372, True))
    )

    assert few == many == 2 * 3 * (3 + 3)  # two rows, three nodes, three columns and three nodes
    assert dense > 1000 * many
