"""Random models and rows of a given shape, and the plain forwards that are the floor."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from actcache.engine.model import LanguageModel, adopt_model
from actcache.prompts.render import Rendered


def random_llama(
    *,
    layers: int,
    d_model: int,
    heads: int,
    mlp: int,
    vocab: int,
    device: str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> LanguageModel:
    """Make a Llama of the given shape with random weights, on the device."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=vocab,
        hidden_size=d_model,
        intermediate_size=mlp,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        max_position_embeddings=4096,
    )
    torch.manual_seed(0)
    default = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device):
            hf: Any = LlamaForCausalLM(config)
    finally:
        torch.set_default_dtype(default)
    return adopt_model(hf, name=f"random Llama {layers} x {d_model}")


def random_rows(n: int, *, tokens: int, vocab: int, seed: int = 0) -> list[Rendered]:
    """Make pairs of about `tokens` prompt tokens (±25 %), a shared "(", a letter, a closing token."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(int(tokens * 0.75), int(tokens * 1.25) + 1, n)
    return [
        Rendered(tuple(rng.integers(5, vocab, length).tolist()), (1,), (2, 4), (3, 4))
        for length in lengths
    ]


def plain_forwards(
    model: LanguageModel, sequences: Sequence[Sequence[int]], *, budget: int, logits: bool
) -> None:
    """Run what a user would write: length-sorted, left-padded batches through the plain model."""
    from actcache.engine.batching import plan_batches
    from actcache.prompts.token_tree import Tree, pack_trees

    run = model.hf if logits else model.anatomy.decoder
    with torch.inference_mode():
        for batch in plan_batches([len(sequence) for sequence in sequences], budget=budget):
            tree = pack_trees([Tree(sequences[i]) for i in batch], pad=0)
            run(
                input_ids=torch.from_numpy(tree.ids).to(model.device),
                attention_mask=torch.from_numpy(tree.valid).to(model.device, torch.int64),
                position_ids=torch.from_numpy(tree.positions).to(model.device),
                use_cache=False,
            )


def saved_gpt2(
    folder: str | Path, *, layers: int, d_model: int, heads: int, vocab: int, context: int = 512
) -> str:
    """Save a GPT-2 of the given shape with random weights and a tokenizer; return its path.

    The tokenizer makes one token of each word, `w5 w6 …`, so that a tool which takes text runs
    exactly the intended tokens.
    """
    from tokenizers import Tokenizer, pre_tokenizers
    from tokenizers.models import WordLevel
    from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

    config = GPT2Config(
        vocab_size=vocab,
        n_embd=d_model,
        n_layer=layers,
        n_head=heads,
        n_positions=context,
        bos_token_id=0,
        eos_token_id=0,
    )
    torch.manual_seed(0)
    hf = GPT2LMHeadModel(config)
    with torch.no_grad():
        # Position embeddings as large as words', so that shifted positions under padding show.
        hf.transformer.wpe.weight.mul_(5)
    hf.save_pretrained(folder)
    words = ["<s>", "(", ")", "A", "B", *(f"w{i}" for i in range(5, vocab))]
    backend = Tokenizer(WordLevel({word: i for i, word in enumerate(words)}, unk_token="<s>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<s>", eos_token="<s>", pad_token="<s>", unk_token="<s>"
    ).save_pretrained(folder)
    return str(folder)


def saved_rows(path: str | Path, n: int, *, tokens: int, vocab: int, seed: int = 0) -> str:
    """Save pairs for `saved_gpt2` of about `tokens` tokens (±25 %) as .jsonl; return its path."""
    rng = np.random.default_rng(seed)
    with Path(path).open("w", encoding="utf-8") as file:
        for i in range(n):
            length = rng.integers(int(tokens * 0.75), int(tokens * 1.25) + 1)
            prompt = " ".join(f"w{token}" for token in rng.integers(5, vocab, length))
            letters = ("A", "B") if i % 2 else ("B", "A")
            row = {"prompt": prompt, "positive": f"( {letters[0]} )"}
            file.write(json.dumps({**row, "negative": f"( {letters[1]} )"}) + "\n")
    return str(path)
