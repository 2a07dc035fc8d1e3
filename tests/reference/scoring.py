"""A text read by a model: the row alone, in a plain Hugging Face forward pass, token by token."""

import numpy as np
import torch


def reference_text(hf, prompt, text, *, layers=()):
    """Mean negative log-probability of a text's tokens, and their mean residual after `layers`.

    `hidden_states[l + 1]` of Hugging Face is the residual after block l; not of the last block, whose
    entry is after the final norm.
    """
    ids = torch.tensor([[*prompt, *text]])
    with torch.no_grad():
        out = hf(input_ids=ids, use_cache=False, output_hidden_states=True)
    total = 0.0
    for i, token in enumerate(text):
        logits = out.logits[0, len(prompt) + i - 1].double()
        total += float(-torch.log_softmax(logits, -1)[token])
    means = []
    for layer in layers:
        tokens = [out.hidden_states[layer + 1][0, len(prompt) + i] for i in range(len(text))]
        means.append(sum(token.double() for token in tokens) / len(tokens))
    nll = total / len(text) if text else float("nan")
    return nll, np.array([mean.numpy() for mean in means])
