"""Tiny random models, one of each family, made from a config: nothing is downloaded."""

import inspect
from typing import Any

import numpy as np
import torch

from actcache.prompts.render import Rendered

VOCAB = 97

_SIZE: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 128,
}
_TOKENS = {"bos_token_id": 1, "eos_token_id": 2}
_GPT = {"vocab_size": VOCAB, "n_embd": 32, "n_layer": 4, "n_head": 4, "n_positions": 128, **_TOKENS}

CONFIGS: dict[str, tuple[str, dict[str, Any]]] = {
    "gpt2": ("GPT2", _GPT),
    "gpt_neo": (
        "GPTNeo",
        {
            "vocab_size": VOCAB,
            "hidden_size": 32,
            "num_layers": 4,
            "num_heads": 4,
            "attention_types": [[["global", "local"], 2]],
            "window_size": 8,
            "max_position_embeddings": 128,
            **_TOKENS,
        },
    ),
    "gpt_neox": ("GPTNeoX", _SIZE),
    "opt": (
        "OPT",
        {**_SIZE, "ffn_dim": 64, "word_embed_proj_dim": 32},
    ),
    "llama": ("Llama", _SIZE),
    "mistral": ("Mistral", {**_SIZE, "sliding_window": 8}),
    "qwen2": ("Qwen2", _SIZE),
    "qwen3": ("Qwen3", _SIZE),
    "gemma2": ("Gemma2", {**_SIZE, "sliding_window": 8, "query_pre_attn_scalar": 8}),
    "gemma3": (
        "Gemma3",
        {**_SIZE, "sliding_window": 8, "query_pre_attn_scalar": 8, "sliding_window_pattern": 2},
    ),
    "phi3": ("Phi3", {**_SIZE, "pad_token_id": 0}),
    "bloom": ("Bloom", {"vocab_size": VOCAB, "hidden_size": 32, "n_layer": 4, "n_head": 4}),
    "cohere": ("Cohere", {**_SIZE, "logit_scale": 0.25}),
    "granite": ("Granite", {**_SIZE, "logits_scaling": 4.0, "residual_multiplier": 0.5}),
    "mixtral": (
        "Mixtral",
        {**_SIZE, "num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": None},
    ),
}


def make(family: str, *, dtype: torch.dtype = torch.float32, attention: str | None = None) -> Any:
    """A random model of a family in eval mode; norms and biases perturbed, so that they matter."""
    import transformers

    stem, settings = CONFIGS[family]
    text = "Text" if family == "gemma3" else ""
    config_class = getattr(transformers, f"{stem}{text}Config")
    assert inspect.isclass(config_class)
    config: Any = config_class(**settings)
    if attention is not None:
        config._attn_implementation = attention
    generator = torch.Generator().manual_seed(0)
    head = "LMHeadModel" if family == "gpt2" else "ForCausalLM"
    model = getattr(transformers, stem + head)(config).to(dtype).eval()
    with torch.no_grad():
        for name, parameter in sorted(model.named_parameters()):
            noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            if parameter.ndim == 1:  # norms and biases
                parameter += (0.2 * noise).to(dtype)
            else:
                scale = 0.5 if "embed" in name or "wte" in name else parameter.shape[-1] ** -0.5
                if family == "gpt_neo" and "q_proj" in name:
                    scale *= 8**-0.5  # it does not divide scores by √head_dim; its weights do
                parameter.copy_((scale * noise).to(dtype))
    return model


def attentions(family: str) -> list[str]:
    """A family's attention in transformers: Gemma 2 (soft cap), GPT-Neo and Bloom have eager only."""
    return ["eager"] if family in ("gpt_neo", "gemma2", "bloom") else ["sdpa", "eager"]


LAST_3 = ("last_-1", "last_-2", "last_-3")
"""The last three tokens of a prompt, by the names of their positions."""

FAMILIES = [(family, attention) for family in CONFIGS for attention in attentions(family)]
"""Every family with every attention that it has."""


TEMPLATE = (
    "{% for m in messages %}{% if m['role'] == 'system' %}{{ 'S: ' + m['content'] + '\\n' }}"
    "{% else %}{{ 'U: ' + m['content'] + '\\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'A:' }}{% endif %}"
)


def tokenizer(*, template: str | None = TEMPLATE, bos: bool = False) -> Any:
    """One token a printable ASCII character: as large as the models' vocabulary, less two."""
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    characters = ["\n", *(chr(code) for code in range(32, 126))]
    vocabulary = {"<s>": 0, **{c: i + 1 for i, c in enumerate(characters)}}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="~"))
    backend.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    if bos:
        backend.post_processor = processors.TemplateProcessing(
            single="<s> $A", special_tokens=[("<s>", 0)]
        )
    made = PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<s>", pad_token="<s>", unk_token="?"
    )
    made.chat_template = template
    return made


def save(folder: Any, family: str = "llama", **kinds: Any) -> str:
    """A tiny model and its tokenizer in a folder, as a user would have them; its path."""
    model = make(family)
    model.save_pretrained(folder)
    tokenizer(**kinds).save_pretrained(folder)
    return str(folder)


def lettered_rows(n: int, rng: np.random.Generator) -> list[dict[str, str]]:
    """Rows of a file, of prompts of many lengths; the positive letter is B and A in turn."""
    return [
        {
            "prompt": "".join(rng.choice(list("abcdef "), rng.integers(3, 40))) + f"{i}?",
            "positive": "(A)" if i % 2 else "(B)",
            "negative": "(B)" if i % 2 else "(A)",
        }
        for i in range(n)
    ]


def random_tokens(rng: np.random.Generator, n: int) -> tuple[int, ...]:
    """Random token ids, without the special ones."""
    return tuple(rng.integers(3, VOCAB, n).tolist())


def ragged_rows() -> list[Rendered]:
    """Rows of all kinds: no shared start, one-token prompts, branches of different lengths."""
    rng = np.random.default_rng(0)

    def some(n: int) -> tuple[int, ...]:
        return random_tokens(rng, n)

    return [
        Rendered(some(20), some(1), some(2), some(2)),
        Rendered(some(7), (), some(1), some(3)),
        Rendered(some(30), some(3), some(4), some(1)),
        Rendered(some(1), some(1), some(2), some(2)),
        Rendered(some(1), (), some(2), some(2)),
    ]


def rows_of_three_lengths() -> list[Rendered]:
    """Three rows whose prompts have more than one token."""
    rng = np.random.default_rng(0)

    def some(n: int) -> tuple[int, ...]:
        return random_tokens(rng, n)

    return [
        Rendered(some(12), some(1), some(2), some(2)),
        Rendered(some(3), (), some(1), some(3)),
        Rendered(some(20), some(3), some(4), some(1)),
    ]


def marked_rows() -> list[Rendered]:
    """Rows with a span: at the start, the end, everywhere, within a window of 8, and empty."""
    rng = np.random.default_rng(0)

    def some(n: int) -> tuple[int, ...]:
        return random_tokens(rng, n)

    return [
        Rendered(some(20), some(1), some(2), some(2), span=(0, 5)),
        Rendered(some(7), (), some(1), some(3), span=(4, 7)),
        Rendered(some(30), some(3), some(4), some(1), span=(0, 30)),
        Rendered(some(3), some(1), some(2), some(2), span=(1, 2)),
        Rendered(some(25), some(1), some(2), some(2), span=(19, 22)),
        Rendered(some(9), some(1), some(2), some(2), span=(4, 4)),
    ]
