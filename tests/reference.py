"""Every definition as a plain loop: slow, obvious, and what the fast paths are held against."""

import numpy as np

# --- the sweep ------------------------------------------------------------------------------------


def naive_propensity(hf, blocks, row, direction, multiplier, layer, *, first_steered, score):
    """One cell by its definition: two full forward passes, a hook, no cache, batch size 1.

    Adds `multiplier · direction` to the output of block `layer` at every token from the first
    steered one on; then sums the score of each completion's tokens from the fork on.
    """
    import torch

    first = {
        "fork": len(row.chain) - 1,
        "prompt": len(row.prompt) - 1,
        "completion": len(row.prompt),
    }[first_steered]

    def steer(_block, _args, output):
        out = output[0] if isinstance(output, tuple) else output
        steered = out.clone()
        steered[:, first:] += (multiplier * direction).to(out.dtype)
        return (steered, *output[1:]) if isinstance(output, tuple) else steered

    totals = []
    for completion in (row.positive, row.negative):
        ids = torch.tensor([[*row.chain, *completion]])
        handle = blocks[layer].register_forward_hook(steer)
        try:
            with torch.no_grad():
                logits = hf(input_ids=ids, use_cache=False).logits[0]
        finally:
            handle.remove()
        if score == "logprob":
            logits = torch.log_softmax(logits, -1)
        n_scored = len(completion) if score in ("logprob", "logit") else 1
        at = len(row.chain) - 1
        totals.append(sum(logits[at + i, completion[i]].item() for i in range(n_scored)))
    difference = totals[0] - totals[1]
    return 1 / (1 + np.exp(-difference)) if score == "probability" else difference

# --- rows: letters, groups, splits, leaks ---------------------------------------------------------


def letter(positive, negative):
    """The word of `positive` if both completions are one word between non-word characters."""
    words = []
    for completion in (positive, negative):
        cleaned = "".join(c if c.isalnum() or c == "_" else " " for c in completion)
        words.append(cleaned.split())
    return words[0][0] if len(words[0]) == len(words[1]) == 1 else ""


def same_group(left, right):
    """Whether two samples must be on one side for their own sake."""
    if left.behavior != right.behavior:
        return False
    prompts = [" ".join(sample.prompt.split()).casefold() for sample in (left, right)]
    rows = [sample.id.split("@")[0] for sample in (left, right)]
    return prompts[0] == prompts[1] or rows[0] == rows[1]


def n_torn(samples, splits):
    """Pairs of samples that must be on one side and are not."""
    torn = 0
    for i, left in enumerate(samples):
        for j, right in enumerate(samples[:i]):
            torn += same_group(left, right) and splits[i] != splits[j]
    return torn


def steering_bench_leaks(prompts, seed):
    """Test prompts that are in train too, after the shuffle and the slices of steering-bench."""
    import random

    prompts = list(prompts)
    random.Random(seed).shuffle(prompts)
    train = prompts[: len(prompts) * 40 // 100]
    test = prompts[len(prompts) * 50 // 100 :]
    leaked = 0
    for prompt in test:
        leaked += prompt in train
    return leaked
