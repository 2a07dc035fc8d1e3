"""The procedures of steering-bench, repepo and CAA, from text to propensity.

`code` names a preset in every function.
"""

import torch

ASSISTANT = "You are a helpful, honest and concise assistant."


def published_texts(code, tokenizer, template, row):
    """Prompt, and prompt with each completion, as the code joins them (`code` names a preset)."""

    def chat(*messages):
        return tokenizer.apply_chat_template(
            [{"role": role, "content": content} for role, content in messages],
            chat_template=template,
            tokenize=False,
            add_generation_prompt=True,
        )

    prompt, positive, negative = row["prompt"], row["positive"], row["negative"]
    if code == "steering-bench":  # Formatter.format; Completion.as_str
        base = chat(("system", ASSISTANT), ("user", prompt))
        return base, base + " " + positive, base + " " + negative
    # repepo and CAA write the template's text themselves, without BOS, and strip all parts.
    messages = [("system", ASSISTANT)] if code == "repepo" else []
    base = chat(*messages, ("user", prompt.strip())).removeprefix(tokenizer.bos_token).strip()
    return base, f"{base} {positive.strip()}", f"{base} {negative.strip()}"


def published_forward(hf, blocks, ids, add=None):
    """One full pass of one sequence: logits `[t, vocab]`, each block's output `[layer, t, d]`.

    `add` is `(layer, first token, vector)`: the vector is added at that token and all later ones.
    """
    selected = []

    def hook(layer):
        def run(_block, _args, output):
            residual = output[0] if isinstance(output, tuple) else output
            if add is not None and layer == add[0]:
                residual[:, add[1] :] += add[2]
            selected.append(residual[0].clone())

        return run

    handles = [block.register_forward_hook(hook(i)) for i, block in enumerate(blocks)]
    try:
        with torch.no_grad():
            logits = hf(input_ids=torch.tensor([ids]), use_cache=False).logits[0].double()
    finally:
        for handle in handles:
            handle.remove()
    return logits, torch.stack(selected)


def published_direction(code, hf, blocks, tokenizer, template, rows):
    """`[layer, d]`: mean difference of the residuals at index -2 of the two whole sequences."""
    differences = []
    for row in rows:
        _, positive, negative = published_texts(code, tokenizer, template, row)
        at = [
            published_forward(hf, blocks, tokenizer(text)["input_ids"])[1][:, -2].double()
            for text in (positive, negative)
        ]
        differences.append(at[0] - at[1])
    return sum(differences) / len(differences)


def published_propensity(code, hf, blocks, tokenizer, template, row, direction, multiplier, layer):
    """One cell: what the code's score of the positive is above that of the negative completion."""
    base_text, *full_texts = published_texts(code, tokenizer, template, row)
    base = tokenizer(base_text)["input_ids"]
    vector = multiplier * direction[layer].float()
    if code == "caa":  # appends "(" and reads two probabilities there
        ids = tokenizer(base_text + " (")["input_ids"]
        logits, _ = published_forward(hf, blocks, ids, (layer, len(base) - 1, vector))
        p = torch.softmax(logits[-1], -1)
        match, other = (
            p[tokenizer.convert_tokens_to_ids("A" if "A" in row[side] else "B")]
            for side in ("positive", "negative")
        )
        return (match / (match + other)).item()
    sums = []
    for text in full_texts:
        ids = tokenizer(text)["input_ids"]
        n = next((i for i, (a, b) in enumerate(zip(base, ids, strict=False)) if a != b), len(base))
        generation_start = n - 1
        skip = 1 if code == "steering-bench" else 0
        logits, _ = published_forward(hf, blocks, ids, (layer, generation_start + skip, vector))
        if code == "steering-bench":
            logits = torch.log_softmax(logits, -1)
        total = 0.0
        for t, target in enumerate(ids[1:]):
            if code == "steering-bench" and target in tokenizer.all_special_ids:
                continue
            total += logits[t, target].item()
        sums.append(total)
    return sums[0] - sums[1]
