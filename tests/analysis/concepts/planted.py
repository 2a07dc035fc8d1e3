"""A GPT-2 with written attention: in each block another closing token copies the concept word."""

import json
from pathlib import Path

import numpy as np
import torch

from actcache.data.concepts import ConceptRows, ConceptSettings
from tests.support.tiny import tokenizer

PLANTED = ("template_-3", "template_-2", "template_-4", "template_-1")
"""The token that copies, by block: the last token learns of the concept in the last block."""

D = 64
_CONCEPT, _STATEMENT, _SINK = 0, 6, 5
_SIGNALS = 32  # block ℓ writes the concept along dimension 32 + ℓ
_TEMPLATE = (
    "{% for m in messages %}{{ m['content'] }}{% endfor %}"
    "{% if add_generation_prompt %}WXYZ{% endif %}"
)
_CLOSING = {"template_-4": "W", "template_-3": "X", "template_-2": "Y", "template_-1": "Z"}


def signal(block: int) -> np.ndarray:
    """What the copying token gains in a block."""
    direction = np.zeros(D)
    direction[_SIGNALS + block] = 1
    return direction


def save_planted(folder: Path) -> str:
    """Write model and tokenizer; their path."""
    tok = tokenizer(template=_TEMPLATE, bos=True)
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(
        vocab_size=97, n_embd=D, n_layer=4, n_head=2, n_positions=256, bos_token_id=0,
        eos_token_id=0, resid_pdrop=0, embd_pdrop=0, attn_pdrop=0,
    )  # fmt: skip
    model = GPT2LMHeadModel(config).eval()
    rng = np.random.default_rng(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
        words = np.zeros((97, D))
        for character in "abcdefghijklmnopqrstuvwxyz":
            words[tok.convert_tokens_to_ids(character), 8:32] = rng.normal(0, 1, 24)
            words[tok.convert_tokens_to_ids(character), _STATEMENT] = 4
        words[tok.convert_tokens_to_ids("#"), _CONCEPT] = 4
        words[tok.bos_token_id, _SINK] = 4
        for number, character in enumerate(_CLOSING.values()):
            words[tok.convert_tokens_to_ids(character), 1 + number] = 4
        model.transformer.wte.weight.copy_(torch.from_numpy(words))
        model.transformer.ln_f.weight.fill_(1)
        for block, position in enumerate(PLANTED):
            layer = model.transformer.h[block]
            layer.ln_1.weight.fill_(1)
            layer.ln_2.weight.fill_(1)
            closing = 1 + list(_CLOSING).index(position)
            qkv, half = torch.zeros(D, 3 * D), D // 2
            bias = torch.zeros(3 * D)
            # Head 0: the closing token asks for the concept word, every other one for the sink.
            qkv[closing, 0] = 30
            bias[1] = 30
            qkv[_CONCEPT, D + 0] = 1
            qkv[_SINK, D + 1] = 1
            qkv[_CONCEPT, 2 * D] = 1
            # Head 1: all tokens copy the statement, which is the noise.
            bias[half] = 30
            qkv[_STATEMENT, D + half] = 1
            for i in range(8, 32):
                qkv[i, 2 * D + half + i - 8] = 1
            layer.attn.c_attn.weight.copy_(qkv)
            layer.attn.c_attn.bias.copy_(bias)
            out = torch.zeros(D, D)
            out[0, _SIGNALS + block] = 1
            out[half : half + 24, 8:32] = torch.from_numpy(rng.normal(0, 0.5, (24, 24)))
            layer.attn.c_proj.weight.copy_(out)
    model.save_pretrained(folder)
    tok.save_pretrained(folder)
    return str(folder)


def write_planted_rows(path: Path, *, concepts: tuple[str, ...] = ("7",), n: int = 60) -> Path:
    """Write rows whose prefix holds the concept word `#`, on statements of random letters."""
    rng = np.random.default_rng(1)
    letters = list("abcdefghijklmnopqrstuvwxyz")
    statements = ["".join(rng.choice(letters, rng.integers(12, 30))) for _ in range(n)]
    settings = ConceptSettings(prefix="#{concept}")
    rows = ConceptRows(concepts=concepts, pools=[statements], settings=settings)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows.rows()))
    return path
