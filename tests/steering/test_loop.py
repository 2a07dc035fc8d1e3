"""The generation loop against its definition: one row, no cache, no padding, whole passes."""

from dataclasses import replace
from itertools import product

import numpy as np
import pytest
import torch

import actcache
from actcache.engine.model import adopt_model
from actcache.errors import MismatchError, ModelError
from actcache.steering import Continuation, Request, Steering, check_generation, generate
from tests.reference.steering import reference_generate
from tests.steering.cases import STEPS, Family
from tests.steering.loop_runs import compare, record
from tests.support.tiny import VOCAB, make, random_tokens

pytestmark = pytest.mark.model


@pytest.fixture(scope="module")
def llama():
    return Family("llama")


def test_each_row_has_its_own_layer_or_vector(llama):
    prompts = [random_tokens(llama.rng, n) for n in (5, 1, 9, 12, 2, 9)]

    def steering(layer, tokens):
        return llama.steering("add", "resid_post", (layer,), tokens=tokens)

    for tokens in ("prompt", "completion", "all"):
        shared = steering(1, tokens)
        own_layer = [replace(shared, layers=(i % 4,)) for i in range(6)]  # as W2S chooses
        own_vector = [steering(2, tokens) for _ in range(6)]  # as L2S predicts
        requests = [
            Request(prompt=prompt, steering=steering)
            for steerings in (own_layer, own_vector)
            for prompt, steering in zip(prompts, steerings, strict=True)
        ]
        assert compare(llama, requests) > 0.4


def test_rows_that_are_not_steered_share_a_batch_with_those_that_are(llama):
    steering = llama.steering("rotate", "ln2", (0, 1, 2, 3), tokens="all")
    requests = [
        Request(prompt=prompt, steering=s)
        for prompt, s in product(llama.prompts, (None, steering, None))
    ]

    texts, _ = record(llama.model, requests)

    for request, text in zip(requests, texts, strict=True):
        tokens, _ = reference_generate(
            llama.hf, "llama", request.prompt, request.steering, steps=STEPS
        )
        assert list(text.tokens) == tokens


def count_rows(model, requests, **options) -> list[list[tuple[int, int]]]:
    """Rows and columns of every block, pass by pass, of one run."""
    passes: list[list[tuple[int, int]]] = []

    def see(layer):
        def hook(_block, args, kwargs):
            if layer == 0:
                passes.append([])
            value = args[0] if args else kwargs["hidden_states"]
            passes[-1].append(tuple(value.shape[:2]))

        return hook

    blocks = model.anatomy.blocks
    # Rows enter in a hook that is there during the run; a module within the block comes after it.
    handles = [
        block.get_submodule("self_attn").register_forward_pre_hook(see(i), with_kwargs=True)
        for i, block in enumerate(blocks)
    ]
    try:
        record(model, requests, **options)
    finally:
        for handle in handles:
            handle.remove()
    return passes


def test_a_prompt_runs_once_for_all_configurations_until_they_are_steered(llama):
    prompts = llama.prompts[:2]  # 3 and 11 tokens
    grid = {
        tokens: [
            Request(prompt=prompt, steering=steering)
            for prompt, steering in product(
                prompts,
                [
                    llama.steering("add", "resid_post", (layer,), tokens=tokens)
                    for layer in (0, 1, 1, 3)
                ],
            )
        ]
        for tokens in ("prompt", "completion", "all")
    }

    def first_pass(tokens, **options):
        return count_rows(llama.model, grid[tokens], max_new=1, **options)

    assert first_pass("prompt", sharing="none") == [[(8, 11)] * 4]
    # All but the last token are the prompt's; that one runs in every row.
    assert first_pass("prompt") == [[(2, 10)] * 4, [(8, 1)] * 4]
    assert first_pass("completion") == [[(2, 11)] * 4]
    # Rows enter behind the block whose output they steer; those of layer 3 have no block to run.
    assert first_pass("all") == [[(2, 11), (4, 11), (8, 11), (8, 11)]]
    # A prompt that no row waits for leaves the batch.
    only_late = [
        r
        for r in grid["all"]
        if not (isinstance(r.steering, Steering) and r.steering.layers == (3,))
    ]
    assert count_rows(llama.model, only_late, max_new=1)[0] == [(2, 11), (4, 11), (6, 11), (6, 11)]


def test_samples_of_one_steering_share_its_prompt(llama):
    steering = llama.steering("add", "ln1", (1,), tokens="all")
    requests = [Request(prompt=llama.prompts[1], steering=steering, noise=i) for i in range(5)]

    [rows, *decoded] = count_rows(llama.model, requests, max_new=2)

    assert rows == [(1, 11)] * 4
    assert decoded == [[(5, 1)] * 4]


def test_texts_end_at_end_tokens_and_their_rows_leave(llama):
    steerings = [llama.steering("add", "resid_post", (i % 4,), tokens="prompt") for i in range(8)]
    requests = [
        Request(prompt=llama.prompts[i % 3], steering=s) for i, s in enumerate([None, *steerings])
    ]
    true = [
        reference_generate(llama.hf, "llama", r.prompt, r.steering, steps=8)[0] for r in requests
    ]
    end_tokens = {true[0][0], true[1][2], true[2][5]}  # request 0 ends before its first token

    texts, _ = record(llama.model, requests, max_new=8, end_tokens=end_tokens)

    for text, tokens in zip(texts, true, strict=True):
        n = next((i for i, token in enumerate(tokens) if token in end_tokens), 8)
        assert list(text.tokens) == tokens[:n]
        assert text.ended == (n < 8)
    assert texts[0].tokens == ()
    assert np.isnan(texts[0].nll_steered)
    assert {len(text.tokens) for text in texts} >= {0, 8}
    n_rows = [
        rows[0][0] for rows in count_rows(llama.model, requests, max_new=8, end_tokens=end_tokens)
    ]
    assert n_rows[1:] == [
        len(requests),
        *(sum(len(text.tokens) > step for text in texts) for step in range(7)),
    ]


def test_a_text_stops_where_its_logits_are_not_finite(llama):
    vectors = np.full((1, 32), 3e38, np.float32)
    broken = Steering(layers=(3,), vectors=vectors, strength=1e10, tokens="completion")
    requests = [Request(prompt=p, steering=s) for s in (broken, None) for p in llama.prompts]

    texts, _ = record(llama.model, requests)

    for text, plain in zip(texts[:3], texts[3:], strict=True):
        assert text.tokens == plain.tokens[:1]  # the first token is not steered
        assert text.nll_steered == np.inf
        assert not text.ended
        assert np.isfinite(plain.nll_steered)


def test_in_half_precision_the_loop_runs_and_its_check_passes():
    case = Family("qwen2", dtype=torch.bfloat16)
    requests = [
        Request(prompt=p, steering=case.steering("turn_to", "ln1", (0, 2), tokens="all"))
        for p in case.prompts
    ]

    assert check_generation(case.model, requests)["bound"] == 0.1
    assert all(len(text.tokens) == 3 for text in write(case.model, requests, max_new=3))


def write(model, requests, **options):
    return generate(model, requests, **{"max_new": STEPS, "end_tokens": (), **options})


def test_the_check_compares_three_steered_rows_of_all_lengths(llama):
    steering = llama.steering("add", "resid_post", (1,), tokens="prompt")
    requests = [
        Request(prompt=random_tokens(llama.rng, n), steering=steering if n > 4 else None)
        for n in range(1, 12)
    ]

    checked = check_generation(llama.model, requests, max_new=3)

    assert checked["rows"] == 3
    assert checked["tokens"] == 9
    assert checked["largest_relative_error"] <= 1e-5 <= checked["bound"]


def test_the_check_fits_into_what_the_prompts_leave_of_the_context(llama):
    few = [Request(prompt=random_tokens(llama.rng, n)) for n in (3, 126)]

    assert check_generation(llama.model, few)["tokens"] == 2 * 2
    assert check_generation(llama.model, [])["rows"] == 0


@pytest.mark.parametrize("sharing", ["prefix", "none"])
def test_the_check_refuses_a_model_whose_cached_tokens_differ(sharing):
    hf = make("llama")
    rotary, forward = hf.model.rotary_emb, hf.model.rotary_emb.forward
    # One token at a time, at a position that is off: as a family that counts padding would.
    rotary.forward = lambda x, position_ids: forward(x, position_ids + 3 * (x.shape[1] == 1))
    requests = [Request(prompt=(5, 6, 7))]

    with pytest.raises(ModelError, match=r"off by .* Try --dtype float32"):
        check_generation(adopt_model(hf), requests, sharing=sharing)


class OutOfMemory:
    """A device that runs out of memory from some number of rows on, at some pass of a batch."""

    def __init__(self, model, *, rows: int, column: int):
        self.sizes: list[int] = []
        self.failures = 0
        self._rows, self._column = rows, column
        self._handle = model.anatomy.decoder.register_forward_pre_hook(self.see, with_kwargs=True)

    def see(self, _decoder, _args, kwargs):
        n, columns = kwargs["attention_mask"].shape
        self.sizes.append(n)
        if n > self._rows and columns >= self._column:
            self.failures += 1
            raise torch.OutOfMemoryError("injected")

    def __enter__(self):
        return self

    def __exit__(self, *_error):
        self._handle.remove()


@pytest.mark.parametrize("column", [1, 11, 13])
def test_out_of_memory_halves_the_batch_and_finishes_each_text_once(llama, column, caplog):
    steerings = [llama.steering("add", "resid_post", (i % 4,), tokens="prompt") for i in range(12)]
    requests = [Request(prompt=llama.prompts[i % 3], steering=s) for i, s in enumerate(steerings)]
    expected = write(llama.model, requests)
    end = {expected[4].tokens[1]}  # so that texts have ended when memory runs out
    expected, finished = write(llama.model, requests, end_tokens=end), []

    with OutOfMemory(llama.model, rows=5, column=column) as device:
        texts = write(
            llama.model,
            requests,
            end_tokens=end,
            sharing="none",
            on_done=lambda number, _text: finished.append(number),
        )

    assert device.failures
    assert "out of memory" in caplog.text
    assert [text.tokens for text in texts] == [text.tokens for text in expected]
    assert sorted(finished) == list(range(12))


def test_a_row_that_does_not_fit_alone_is_an_error(llama):
    with (
        OutOfMemory(llama.model, rows=0, column=1),
        pytest.raises(ModelError, match="smaller --dtype"),
    ):
        write(llama.model, [Request(prompt=(5, 6))])


@pytest.mark.parametrize("sharing", ["auto", "none"])
def test_batches_stay_within_the_budget_of_prompt_and_new_tokens(llama, sharing):
    requests = [
        Request(
            prompt=random_tokens(llama.rng, 2 + i % 7),
            steering=llama.steering("add", "resid_post", (i % 4,), tokens="all"),
        )
        for i in range(20)
    ]

    passes = count_rows(llama.model, requests, sharing=sharing, max_new=3, budget=40)

    assert {len(rows) for rows in passes} == {4}
    # The longest row of a batch has its width in the first pass, and gets 3 tokens.
    widest = max(columns for rows in passes for _, columns in rows)
    assert widest == 8
    assert max(n * (columns + 3) for rows in passes for n, columns in rows if columns > 1) <= 40
    whole, few = (record(llama.model, requests, sharing=sharing, budget=n)[0] for n in (10**6, 1))
    assert [text.tokens for text in whole] == [text.tokens for text in few]


def test_progress_and_on_done_hear_of_every_text(llama):
    from tests.support.recorder import Recorder

    recorder = Recorder()
    heard: dict[int, Continuation] = {}
    requests = [Request(prompt=prompt) for prompt in llama.prompts]

    texts = write(llama.model, requests, progress=recorder, on_done=heard.__setitem__)

    assert heard == dict(enumerate(texts))


def test_nothing_to_write_is_nothing(llama):
    assert write(llama.model, []) == []


def test_the_front_door_has_the_loop():
    assert actcache.generate is generate
    assert actcache.Request is Request


def count_hooks(hf) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in hf.modules())


def test_hooks_are_gone_and_the_model_is_free_after_an_error(llama):
    steering = llama.steering("add", "resid_post", (1,), tokens="all")
    write(llama.model, [Request(prompt=(5, 6))])  # transformers leaves hooks of its own
    before = count_hooks(llama.hf)

    with OutOfMemory(llama.model, rows=0, column=1), pytest.raises(ModelError):
        write(llama.model, [Request(prompt=(5, 6), steering=steering)])

    assert count_hooks(llama.hf) == before
    assert write(llama.model, [Request(prompt=(5, 6))])


def test_a_model_that_is_steered_already_is_refused(llama):
    steering = llama.steering("add", "resid_post", (1,), tokens="all")
    with actcache.steer(llama.model, steering, prompt_width=2):
        llama.hf(torch.tensor([[5, 6]]))
        with pytest.raises(ModelError, match="Leave the other one first"):
            write(llama.model, [Request(prompt=(5, 6))])


FRONT = Steering(
    layers=(0,), site="resid_pre", vectors=np.ones((4, 32), np.float32), tokens="front"
)


@pytest.mark.parametrize(
    ("request_", "options", "remedy"),
    [
        (Request(prompt=()), {}, "request 1 is empty, .*BOS"),
        (Request(prompt=(5, VOCAB)), {}, "Use the model's own tokenizer"),
        (Request(prompt=(-1,)), {}, "Use the model's own tokenizer"),
        (Request(prompt=(5,) * 126), {}, "expected 128 together .*shorter prompt"),
        (Request(prompt=(5,), noise=-1), {}, "noise of request 1 is -1"),
        (Request(prompt=(5, 6, 7), steering=FRONT), {}, "longer prompt or fewer vectors"),
        (Request(prompt=(5,) * 9, steering=FRONT), {"sharing": "prefix"}, "Use sharing='auto'"),
        (Request(prompt=(5,)), {"max_new": 0}, "max_new is 0, .*Try 64"),
        (Request(prompt=(5,)), {"temperature": -1.0}, "Try 1"),
        (Request(prompt=(5,)), {"temperature": float("nan")}, "Try 1"),
        (Request(prompt=(5,)), {"seed": 1 << 64}, "seed is"),
        (Request(prompt=(5,)), {"batch_tokens": 0}, "Try 2048"),
    ],
)
def test_bad_input_is_refused_in_one_line_before_anything_runs(llama, request_, options, remedy):
    with (
        OutOfMemory(llama.model, rows=0, column=1) as device,
        pytest.raises(MismatchError, match=remedy) as caught,
    ):
        write(llama.model, [Request(prompt=(5,)), request_], **options)

    assert not device.sizes
    assert "\n" not in str(caught.value)
