"""`steer`: Hugging Face's own generate inside it, in all its ways, and what it refuses."""

import threading
from functools import lru_cache
from typing import Any

import numpy as np
import pytest
import torch
from transformers import DynamicCache
from transformers.generation.streamers import BaseStreamer

import actcache
from actcache.errors import MismatchError, ModelError
from actcache.steering import Steering
from actcache.steering.hooks import _starts
from tests.reference.steering import Placed, open_parts, reference_generate
from tests.steering.cases import Family
from tests.steering.test_exactness import padded
from tests.support.tiny import make

pytestmark = pytest.mark.model
STEPS = 5
FAMILIES = ("gpt2", "gpt_neo", "opt", "llama", "mistral", "gemma3", "bloom", "granite")


class Rows(Family):
    """Nine rows, three prompts each under three steerings, and what they write by definition."""

    def __init__(self, family: str):
        super().__init__(family)
        kinds = [
            self.steering("add", "resid_post", (1,)),
            self.steering("rotate", "ln1", (1, 2), tokens="all"),
            self.steering("ablate", "resid_pre", (0, 2), tokens="all", window=(0, 3))
            + self.steering("add", "mlp_out", (1,), tokens="completion"),
            self.steering("add", "resid_post", (0, 1), tokens="all", gate=self.gates[0]),
            # Of the prompt of 7 tokens, behind padding.
            self.front("resid_pre", 2, None) + self.steering("turn_to", "attn_out", (2, 3)),
        ]
        self.steerings = [None, *kinds, None, kinds[0], kinds[2]]
        self.rows = [self.prompts[row % 3] for row in range(9)]
        self.ids, self.mask = padded(self.rows, self.width)
        pairs = zip(self.rows, self.steerings, strict=True)
        self.texts = [
            reference_generate(self.hf, family, prompt, steering, steps=STEPS)[0]
            for prompt, steering in pairs
        ]

    def steered(self, rows=slice(None)):
        return actcache.steer(
            self.model,
            self.steerings[rows],
            prompt_width=self.width,
            prompts=self.rows[rows],
        )

    def generate(self, rows=slice(None), **kwargs):
        """The new tokens of generate."""
        settings = {"max_new_tokens": STEPS, "do_sample": False, "pad_token_id": 0, **kwargs}
        out = self.hf.generate(self.ids[rows], attention_mask=self.mask[rows], **settings)
        return out[:, self.width :].tolist()


@lru_cache(maxsize=len(FAMILIES))
def rows_of(family: str) -> Rows:
    return Rows(family)


@pytest.fixture(params=FAMILIES)
def case(request):
    return rows_of(request.param)


@pytest.fixture
def llama():
    return rows_of("llama")


def n_hooks(hf) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in hf.modules())


def test_the_rows_differ_from_the_unsteered_text(case):
    plain = case.generate()

    assert [text != true for text, true in zip(plain, case.texts, strict=True)].count(True) >= 5


@pytest.mark.parametrize(
    "way",
    [
        {},
        {"use_cache": False},
        {"prefill_chunk_size": 4},
        {"cache_implementation": "static", "disable_compile": True},
    ],
    ids=["cache", "no cache", "chunked prefill", "static cache"],
)
def test_greedy_text_equals_the_naive_loop(case, way):
    if case.family == "gpt_neo" and "cache_implementation" in way:
        pytest.skip(
            "transformers' GPT-Neo reads its window wrongly with a static cache, unsteered too"
        )

    with case.steered():
        texts = case.generate(**way)

    assert texts == case.texts


@pytest.mark.parametrize(
    ("masks", "positions", "starts"),
    [
        ([[0, 0, 1, 1], [1, 1, 1, 1]], None, [2, 0]),
        (None, [[0, 1], [2, 3]], [2, 0]),  # of the columns 2 and 3
        (None, [[2, 3]], [0, 0]),
        ([[[[0, 0, 1, 1]]]], [[0, 1], [2, 3]], [2, 0]),  # 4D, as with a static cache
    ],
)
def test_where_prompts_start_is_read_from_the_mask_or_else_from_positions(masks, positions, starts):
    given = {"attention_mask": masks, "position_ids": positions}
    inputs = {name: torch.tensor(x) for name, x in given.items() if x is not None}

    columns = _starts(inputs, 2, 4)

    assert columns is not None
    assert columns.tolist() == starts


def test_prompt_lookup_one_row_at_a_time_equals_the_naive_loop(case):
    texts = []
    for row, prompt in enumerate(case.rows):
        with actcache.steer(
            case.model, case.steerings[row], prompt_width=len(prompt), prompts=[prompt]
        ):
            # A repeated prompt is what lookup finds candidates in; most are rejected.
            out = case.hf.generate(
                torch.tensor([prompt]),
                max_new_tokens=STEPS,
                do_sample=False,
                pad_token_id=0,
                prompt_lookup_num_tokens=2,
                max_matching_ngram_size=1,
            )
        texts.append(out[0, len(prompt) :].tolist())

    assert texts == case.texts


def test_beams_equal_those_of_each_row_alone_without_a_cache(case):
    settings = {"num_beams": 3, "num_return_sequences": 2, "max_new_tokens": 3, "pad_token_id": 0}
    with case.steered(slice(0, 6)):
        texts = case.generate(slice(0, 6), **settings)

    for row in range(6):
        prompt = case.rows[row]
        parts = open_parts(case.hf, prompt, case.steerings[row])
        with Placed(case.hf, case.family, parts, len(prompt), batch=3):
            alone = case.hf.generate(
                torch.tensor([prompt]), do_sample=False, use_cache=False, **settings
            )
        assert texts[2 * row : 2 * row + 2] == alone[:, len(prompt) :].tolist()


def test_logits_along_sampled_texts_equal_one_uncached_pass_a_row(case):
    torch.manual_seed(0)
    with case.steered():
        out = case.hf.generate(
            case.ids,
            attention_mask=case.mask,
            do_sample=True,
            num_return_sequences=2,
            max_new_tokens=STEPS,
            pad_token_id=0,
            output_logits=True,
            return_dict_in_generate=True,
        )

    logits, texts = torch.stack(out.logits, 1), out.sequences[:, case.width :].tolist()
    for i, text in enumerate(texts):
        prompt = case.rows[i // 2]
        parts = open_parts(case.hf, prompt, case.steerings[i // 2])
        with Placed(case.hf, case.family, parts, len(prompt)), torch.no_grad():
            ids = torch.tensor([[*prompt, *text[:-1]]])
            true = case.hf(ids, use_cache=False).logits[0, len(prompt) - 1 :]
        assert (logits[i] - true).abs().max() <= 1e-5 * true.abs().max()
    assert texts[::2] != texts[1::2]


def test_a_prompt_cache_may_be_passed_in(case):
    columns = 5
    ids, mask = case.ids[:, :columns], case.mask[:, :columns]
    positions = (mask.cumsum(1) - 1).clamp_min(0)
    with case.steered():
        cache = DynamicCache()
        with torch.no_grad():
            case.model.anatomy.decoder(
                input_ids=ids, attention_mask=mask, position_ids=positions, past_key_values=cache
            )
        texts = case.generate(past_key_values=cache)

    assert texts == case.texts


def test_a_cache_of_the_unsteered_prompt_serves_steering_that_begins_at_its_end(llama):
    rows = [0, 1, 6, 7]  # unsteered, or `prompt`
    ids, mask = llama.ids[rows], llama.mask[rows]
    cache = DynamicCache()
    with torch.no_grad():
        llama.hf(
            ids[:, :-1],
            attention_mask=mask[:, :-1],
            position_ids=(mask.cumsum(1) - 1).clamp_min(0)[:, :-1],
            past_key_values=cache,
        )

    with actcache.steer(
        llama.model, [llama.steerings[row] for row in rows], prompt_width=llama.width
    ):
        texts = llama.generate(rows, past_key_values=cache)

    assert texts == [llama.texts[row] for row in rows]


class Collected(BaseStreamer):
    def __init__(self):
        self.tokens: list[int] = []

    def put(self, value):
        self.tokens += value.flatten().tolist()

    def end(self):
        pass


def test_a_streamer_hears_the_steered_text_from_another_thread(llama):
    row = 1
    streamer, prompt = Collected(), torch.tensor([llama.rows[row]])
    settings = {"max_new_tokens": STEPS, "do_sample": False, "pad_token_id": 0}
    with actcache.steer(llama.model, llama.steerings[row], prompt_width=prompt.shape[1]):
        thread = threading.Thread(
            target=llama.hf.generate, args=(prompt,), kwargs={"streamer": streamer, **settings}
        )
        thread.start()
        thread.join()

    assert streamer.tokens == [*llama.rows[row], *llama.texts[row]]


def test_a_hugging_face_model_may_be_given_as_it_is(llama):
    hf = llama.hf
    hf.requires_grad_()
    try:
        with actcache.steer(hf, llama.steerings, prompt_width=llama.width, prompts=llama.rows):
            texts = llama.generate()
        assert all(parameter.requires_grad for parameter in hf.parameters())
    finally:
        hf.requires_grad_(requires_grad=False)

    assert texts == llama.texts


def test_one_steering_serves_all_rows(llama):
    steering = llama.steerings[2]
    with actcache.steer(llama.model, steering, prompt_width=llama.width):
        texts = llama.generate()

    with actcache.steer(llama.model, [steering] * 9, prompt_width=llama.width):
        assert llama.generate() == texts
    assert texts[2] == llama.texts[2]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_rows_that_are_not_steered_and_identities_keep_their_bits(dtype):
    case = Family("granite", dtype=dtype)
    ids, mask = padded([case.prompts[row % 3] for row in range(9)], case.width)
    plane = case.steering("rotate", "ln1", (0, 1, 2, 3), tokens="all")
    steerings = [
        None,
        plane.at(0),
        plane.at(360),
        plane.at(-720),
        case.steering("add", "attn_out", (1,), tokens="all", renorm=True).at(0),
        case.steering("ablate", "mlp_out", (2,), tokens="all").at(0),
        plane + case.steering("add", "mlp_out", (1, 2), tokens="all"),
        case.steering("add", "resid_post", (3,), tokens="completion"),
        case.steering("add", "resid_post", (1,), tokens="all", window=(1, None)),
    ]
    with torch.no_grad():
        plain = case.hf(ids, attention_mask=mask).logits
        with actcache.steer(case.model, steerings, prompt_width=case.width):
            steered = case.hf(ids, attention_mask=mask).logits

    same = [torch.equal(*pair) for pair in zip(plain[:, -1], steered[:, -1], strict=True)]
    assert same == [True] * 6 + [False, True, True]


def test_hooks_are_gone_after_an_error_and_the_model_can_be_steered_again(llama):
    before = n_hooks(llama.hf)

    def stop(_ids, _scores):
        assert n_hooks(llama.hf) > before
        raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"), llama.steered():
        llama.generate(logits_processor=[stop])

    assert n_hooks(llama.hf) == before
    assert "get_compiled_call" not in vars(llama.hf)
    with llama.steered():
        assert llama.generate() == llama.texts


def test_a_second_context_on_the_same_model_is_refused(llama):
    with llama.steered():
        with (
            pytest.raises(ModelError, match=r"steered already.*Leave the other one first"),
            actcache.steer(llama.hf, None, prompt_width=3),
        ):
            pass
        assert llama.generate() == llama.texts


def test_a_batch_of_another_size_is_refused(llama):
    with (
        pytest.raises(MismatchError, match=r"has 4 rows, expected 9 .*Pass one steering"),
        llama.steered(),
    ):
        llama.generate(slice(0, 4))


def test_a_width_below_one_is_refused(llama):
    with (
        pytest.raises(MismatchError, match=r"prompt_width is 0.*Pass the width of the input ids"),
        actcache.steer(llama.model, None, prompt_width=0),
    ):
        pass


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"layers": (4,)}, r"layer 4, expected 0 to 3 .*Steer one of its layers"),
        ({"site": "ln1_post"}, r"no site 'ln1_post'"),
        ({"vectors": np.ones((1, 31), np.float32)}, r"have 31 values, expected 32 .*of this model"),
    ],
)
def test_a_steering_that_the_model_cannot_take_is_refused_before_anything_runs(
    llama, fields, message
):
    steering = Steering(**{"layers": (1,), "vectors": np.ones((1, 32), np.float32), **fields})

    with (
        pytest.raises(actcache.ActcacheError, match=message),
        actcache.steer(llama.model, [None, steering], prompt_width=3),
    ):
        pass


def test_a_prompt_gate_without_prompts_is_refused(llama):
    steering = llama.steering("add", "resid_post", (1,), gate=llama.gates[0])

    with (
        pytest.raises(MismatchError, match="Pass the prompts' token ids as prompts="),
        actcache.steer(llama.model, steering, prompt_width=3),
    ):
        pass


@pytest.mark.slow  # torch.compile is imported
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("part", ["model", "block", "forward", "module"])
def test_compiled_models_are_refused(part):
    hf = make("llama")
    model: Any = hf
    if part == "model":
        model = torch.compile(hf, backend="eager")
    elif part == "block":
        hf.model.layers[1] = torch.compile(hf.model.layers[1], backend="eager")
    elif part == "forward":
        hf.forward = torch.compile(hf.forward, backend="eager")
    else:
        hf.model.layers[2].mlp.compile(backend="eager")

    with (
        pytest.raises(ModelError, match=r"compiled.*Load it anew without torch.compile"),
        actcache.steer(model, None, prompt_width=3),
    ):
        pass


def test_the_compilation_that_generate_turns_to_by_itself_is_refused(llama):
    from transformers import CompileConfig

    config = CompileConfig()
    vars(config)["_compile_all_devices"] = True  # as on a GPU
    with pytest.raises(ModelError, match="disable_compile=True"), llama.steered():
        llama.generate(cache_implementation="static", compile_config=config)


def test_a_context_in_which_the_model_did_not_run_says_so(llama):
    with (
        pytest.raises(ModelError, match=r"no forward pass.*run the model itself"),
        actcache.steer(llama.model, llama.steerings[2], prompt_width=3),
    ):
        make("llama")(torch.tensor([[3, 4, 5]]))
