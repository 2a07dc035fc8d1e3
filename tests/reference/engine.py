"""One cell of a sweep and one token's attention, through plain Hugging Face passes."""

import numpy as np
import torch


def naive_propensity(hf, blocks, row, direction, multiplier, layer, *, first_steered, score):
    """One cell by its definition: two full forward passes, a hook, no cache, batch size 1.

    Adds `multiplier · direction` to the output of block `layer` at every token from the first
    steered one on; then sums the score of each completion's tokens from the fork on.
    """
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


def attention_mass(hf, tokens, back, span):
    """`[layer, head]`: what the token `back` from the end puts on tokens `[start, end)`, summed one
    by one from the weights that eager Hugging Face attention gives for this sequence alone."""
    with torch.no_grad():
        weights = hf(torch.tensor([tokens]), output_attentions=True).attentions
    masses = np.zeros((len(weights), weights[0].shape[1]))
    for layer, weight in enumerate(weights):
        for head in range(weight.shape[1]):
            for key in range(*span):
                masses[layer, head] += float(weight[0, head, len(tokens) - back, key])
    return masses


def cell_attention(query, key, value, tree_keys, tree_values, prefix, of_cell, *, scale):
    """`[b, joined, head, e]`: each joined token's softmax over all that it may see, one by one.

    `prefix` `[b, node, t]` and `own` `[b, node, node]` say what each node of a cell may see; keys
    and values may have fewer heads than the queries.
    """
    b, n_heads, n_joined, e = query.shape
    shared, n_nodes = n_heads // key.shape[1], of_cell.shape[1]
    out = np.zeros((b, n_joined, n_heads, e))
    for i, head, j in np.ndindex(b, n_heads, n_joined):
        cell, node = divmod(j, n_nodes)
        kv = head // shared
        keys, values = [], []
        for column in np.flatnonzero(prefix[i, node]):
            keys.append(tree_keys[i, kv, column])
            values.append(tree_values[i, kv, column])
        for other in np.flatnonzero(of_cell[i, node]):
            keys.append(key[i, kv, cell * n_nodes + other])
            values.append(value[i, kv, cell * n_nodes + other])
        scores = np.array([scale * (query[i, head, j] @ seen) for seen in keys])
        weights = np.exp(scores - scores.max())
        out[i, j, head] = weights @ np.array(values) / weights.sum()
    return out
