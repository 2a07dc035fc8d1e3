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


# --- analyses of arrays: moments, directions, layers, steerability --------------------------------


def class_moments(resid, labels, n_classes):
    """Count, mean and scatter of each class, one coordinate at a time, in Python's floats."""
    n, n_layers, d_model = resid.shape
    count = np.zeros(n_classes, np.int64)
    mean = np.zeros((n_classes, n_layers, d_model))
    scatter = np.zeros((n_classes, n_layers, d_model))
    for k in range(n_classes):
        members = [i for i in range(n) if labels[i] == k]
        count[k] = len(members)
        if not members:
            continue
        for layer in range(n_layers):
            for j in range(d_model):
                values = [float(resid[i, layer, j]) for i in members]
                average = sum(values) / len(values)
                mean[k, layer, j] = average
                scatter[k, layer, j] = sum((v - average) ** 2 for v in values)
    return count, mean, scatter


def cosine(a, b):
    """Cosine of two vectors; 0 if one is zero."""
    size = sum(float(x) ** 2 for x in a) ** 0.5 * sum(float(x) ** 2 for x in b) ** 0.5
    return sum(float(x) * float(y) for x, y in zip(a, b, strict=True)) / size if size else 0.0


def common_direction(directions):
    """Layer whose direction has the largest mean cosine with all (the first), and those means."""
    means = [sum(cosine(a, b) for b in directions) / len(directions) for a in directions]
    return means.index(max(means)), means


def ranks(values):
    """Rank of each value from 1; equal values share the mean of their ranks."""
    out = []
    for v in values:
        below = sum(w < v for w in values)
        equal = sum(w == v for w in values)
        out.append(below + (equal + 1) / 2)
    return out


def auc(positive, negative):
    """Share of pairs with the positive larger; ties count half."""
    won = 0.0
    for p in positive:
        for q in negative:
            won += 1.0 if p > q else 0.5 if p == q else 0.0
    return won / (len(positive) * len(negative))


def fisher_ratio(positive, negative):
    """Squared difference of means over the sum of the unbiased variances."""
    means, spread = [], 0.0
    for values in (positive, negative):
        average = sum(values) / len(values)
        means.append(average)
        if len(values) > 1:
            spread += sum((v - average) ** 2 for v in values) / (len(values) - 1)
    gap = (means[0] - means[1]) ** 2
    if spread == 0:
        return np.inf if gap > 0 else 0.0
    return gap / spread


def class_projections(resid, labels, direction, normalize):
    """Mean over each class, positive first, of the projection of (unit) residuals, by layer."""
    out = np.zeros((2, resid.shape[1]))
    for row, label in enumerate((1, 0)):
        members = [i for i in range(len(resid)) if labels[i] == label]
        for layer in range(resid.shape[1]):
            total = 0.0
            for i in members:
                x = np.asarray(resid[i, layer], np.float64)
                size = float(np.sqrt((x * x).sum()))
                total += float((x * direction).sum()) / (size if normalize and size else 1.0)
            out[row, layer] = total / len(members)
    return out


def slope(values, multipliers):
    """Least-squares slope of one cell."""
    at = sum(multipliers) / len(multipliers)
    height = sum(values) / len(values)
    rise = sum((x - at) * (y - height) for x, y in zip(multipliers, values, strict=True))
    return rise / sum((x - at) ** 2 for x in multipliers)


def residual_rms(values, multipliers):
    """Root mean square distance of one cell from its line."""
    at = sum(multipliers) / len(multipliers)
    height = sum(values) / len(values)
    b = slope(values, multipliers)
    squares = [(y - height - b * (x - at)) ** 2 for x, y in zip(multipliers, values, strict=True)]
    return (sum(squares) / len(squares)) ** 0.5


def spearman(values, multipliers):
    """Correlation of the ranks of one cell; 0 if it is constant."""
    a, b = ranks(values), ranks(multipliers)
    middle = (len(a) + 1) / 2
    return cosine([x - middle for x in a], [y - middle for y in b])


def slope_table(propensity, multipliers):
    """Slope of every sample and layer."""
    n, n_layers, _ = propensity.shape
    out = np.zeros((n, n_layers))
    for i in range(n):
        for layer in range(n_layers):
            out[i, layer] = slope([float(v) for v in propensity[i, layer]], list(multipliers))
    return out


def halves(multipliers):
    """Positions of the multipliers whose size is, in order of size, 1st, 3rd, … and 2nd, 4th, …"""
    sizes = sorted({abs(float(m)) for m in multipliers} - {0.0})
    split: tuple[list[int], list[int]] = [], []
    for at, m in enumerate(multipliers):
        if m != 0:
            split[sizes.index(abs(float(m))) % 2].append(at)
    return split


def first_largest(values):
    """Position of the largest value, the first of equals."""
    best = 0
    for at, value in enumerate(values):
        if value > values[best]:
            best = at
    return best


def layer_choice(propensity, multipliers, train, test):
    """Every number of a `LayerChoice` but the intervals, sample by sample."""
    s = slope_table(propensity, multipliers)
    n_layers = s.shape[1]
    rows = [i for i in range(len(s)) if test[i]]
    fixed = first_largest(
        [sum(s[i, layer] for i in range(len(s)) if train[i]) for layer in range(n_layers)]
    )
    mean = [sum(s[i, layer] for i in rows) / len(rows) for layer in range(n_layers)]
    best = {i: first_largest(s[i]) for i in rows}
    found = {
        "n": len(rows),
        "mean": mean,
        "share_steerable": [
            sum(s[i, layer] > 0 for i in rows) / len(rows) for layer in range(n_layers)
        ],
        "fixed_layer": fixed,
        "fixed": mean[fixed],
        "fixed_share": sum(s[i, fixed] > 0 for i in rows) / len(rows),
        "best_on_test_layer": first_largest(mean),
        "best_on_test": max(mean),
        "random_layer": sum(mean) / n_layers,
        "oracle": sum(s[i, best[i]] for i in rows) / len(rows),
        "oracle_share": sum(s[i, best[i]] > 0 for i in rows) / len(rows),
        "oracle_gain": sum(s[i, best[i]] - s[i, fixed] for i in rows) / len(rows),
        "oracle_deviation": sum(abs(best[i] - fixed) for i in rows) / len(rows),
    }
    one, other = (
        slope_table(propensity[:, :, at], [multipliers[a] for a in at])
        for at in halves(multipliers)
    )
    oracle = at_fixed = moved = 0.0
    for i in rows:
        for chooses, scores in ((one, other), (other, one)):
            chosen = first_largest(chooses[i])
            oracle += scores[i, chosen] / (2 * len(rows))
            at_fixed += scores[i, fixed] / (2 * len(rows))
            moved += abs(chosen - fixed) / (2 * len(rows))
    crossfit = {"oracle": oracle, "fixed": at_fixed, "gain": oracle - at_fixed, "deviation": moved}
    return found, crossfit


# --- the store ------------------------------------------------------------------------------------


def shard_file(values, shard, shard_rows):
    """The bytes of one shard's file: blocks layer by layer, the index, its checksum."""
    import struct

    import google_crc32c

    n, n_layers, width = values.shape
    blocks = []
    for layer in range(n_layers):
        block = b""
        for row in range(shard * shard_rows, (shard + 1) * shard_rows):
            for column in range(width):
                value = values[row, layer, column] if row < n else values.dtype.type(0)
                block += value.tobytes()
        blocks.append(block)
    index = b""
    for layer in range(n_layers):
        index += struct.pack("<QQ", sum(len(block) for block in blocks[:layer]), len(blocks[layer]))
    return b"".join(blocks) + index + struct.pack("<I", google_crc32c.value(index))


def float32_of_bits(bits):
    """bfloat16 values from their bits: the upper half of a float32."""
    values = np.empty(bits.shape, np.float32)
    for at, each in np.ndenumerate(bits):
        values[at] = np.frombuffer(b"\0\0" + int(each).to_bytes(2, "little"), "<f4")[0]
    return values


# --- the published procedures, from text to propensity --------------------------------------------

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
    import torch

    kept = []

    def hook(layer):
        def run(_block, _args, output):
            residual = output[0] if isinstance(output, tuple) else output
            if add is not None and layer == add[0]:
                residual[:, add[1] :] += add[2]
            kept.append(residual[0].clone())

        return run

    handles = [block.register_forward_hook(hook(i)) for i, block in enumerate(blocks)]
    try:
        with torch.no_grad():
            logits = hf(input_ids=torch.tensor([ids]), use_cache=False).logits[0].double()
    finally:
        for handle in handles:
            handle.remove()
    return logits, torch.stack(kept)


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
    import torch

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


# --- attention masses -----------------------------------------------------------------------------


def attention_mass(hf, tokens, back, span):
    """`[layer, head]`: what the token `back` from the end puts on tokens `[start, end)`, summed one
    by one from the weights that eager Hugging Face attention gives for this sequence alone."""
    import torch

    with torch.no_grad():
        weights = hf(torch.tensor([tokens]), output_attentions=True).attentions
    masses = np.zeros((len(weights), weights[0].shape[1]))
    for layer, each in enumerate(weights):
        for head in range(each.shape[1]):
            for key in range(*span):
                masses[layer, head] += float(each[0, head, len(tokens) - back, key])
    return masses


def token_choice(masses, scan):
    """For each layer the position with the largest head mean in any scanned row, that mass, and the
    mean over scanned rows; then layers by that mean."""
    n_layers, n_heads = masses[0].shape[1:]
    places, peaks, means = [], [], []
    for layer in range(n_layers):
        best, place = -1.0, 0
        for k, each in enumerate(masses):
            for i in scan:
                value = sum(float(x) for x in each[i, layer]) / n_heads
                if value > best:
                    best, place = value, k
        rows = [sum(float(x) for x in masses[place][i, layer]) / n_heads for i in scan]
        places.append(place)
        peaks.append(best)
        means.append(sum(rows) / len(rows))
    order = sorted(range(n_layers), key=lambda layer: -means[layer])
    return places, peaks, means, order


def soft_labels(masses, places, positive):
    """Head mean at the chosen position, 0 for negatives, then to [0, 1] in each layer."""
    n, n_layers, n_heads = masses[0].shape
    labels = np.zeros((n, n_layers))
    for layer in range(n_layers):
        for i in range(n):
            if positive[i]:
                labels[i, layer] = sum(float(x) for x in masses[places[layer]][i, layer]) / n_heads
        low, high = min(labels[:, layer]), max(labels[:, layer])
        for i in range(n):
            labels[i, layer] = (labels[i, layer] - low) / (high - low) if high > low else 0.0
    return labels


# --- embeddings -----------------------------------------------------------------------------------


def silhouette(embeddings, behaviors):
    """Rousseeuw 1987 with cosine distance, pair by pair; 0 for a row alone in its behavior."""
    units = [
        np.asarray(row, np.float64) / np.linalg.norm(row.astype(np.float64)) for row in embeddings
    ]
    found = []
    for i, unit in enumerate(units):
        distances: dict[object, list[float]] = {}
        for j, other in enumerate(units):
            if j != i:
                distances.setdefault(behaviors[j], []).append(
                    float(((unit - other) ** 2).sum()) / 2
                )
        own = distances.pop(behaviors[i], None)
        if own is None:
            found.append(0.0)
            continue
        a, b = np.mean(own), min(np.mean(each) for each in distances.values())
        found.append(float((b - a) / max(a, b)) if max(a, b) > 1e-14 else 0.0)
    return np.array(found)


# --- the layer to steer at: labels, and classifiers one at a time ---------------------------------


def layers_by_slope(slope):
    """The layers of one sample, larger slopes first, equal ones in their order."""
    left = list(range(len(slope)))
    ordered = []
    while left:
        best = left[0]
        for layer in left[1:]:
            if slope[layer] > slope[best]:
                best = layer
        ordered.append(best)
        left.remove(best)
    return ordered


def frequencies(slope):
    """Share of the samples whose best layer each layer is."""
    count = [0] * len(slope[0])
    for row in slope:
        count[layers_by_slope(row)[0]] += 1
    return [each / len(slope) for each in count]


def smoothed_label(slope, top, frequency):
    """Of one sample's `top` best layers the commonest; ties go to the larger slope, then the first."""
    candidates = layers_by_slope(slope)[:top]
    best = candidates[0]
    for layer in candidates[1:]:
        if frequency[layer] > frequency[best]:
            best = layer
    return best


def classifier_alone(part, network, *, start, orders, rate, decay, epochs, batch):
    """One network as PyTorch trains it: losses and held-out classes of each checkpoint, weights.

    `part` has inputs, labels `[k, rows]`, allowed classes and held-out rows; `start` the first
    weights, `orders` the order of rows of each epoch.
    """
    import torch

    modules: list[torch.nn.Module] = []
    for matrix, bias in start:
        linear = torch.nn.Linear(matrix.shape[1], matrix.shape[0], dtype=part.inputs.dtype)
        with torch.no_grad():
            linear.weight.copy_(matrix)
            linear.bias.copy_(bias)
        modules += [linear, torch.nn.ReLU()]
    net = torch.nn.Sequential(*modules[:-1])
    closed = torch.zeros(part.allowed.shape[1]).masked_fill(~part.allowed[network], -torch.inf)
    labels = part.labels[network]
    optimizer = torch.optim.AdamW(net.parameters(), lr=rate, weight_decay=decay)
    losses, predicted = [], []
    for epoch in range(1, epochs[-1] + 1):
        order, total = next(orders), 0.0
        for rows in order.split(batch):
            optimizer.zero_grad()
            logits = net(part.inputs[rows]) + closed
            loss = torch.nn.functional.cross_entropy(logits, labels[rows])
            loss.backward()
            optimizer.step()
            total += loss.item() * len(rows) / len(order)
        if epoch in epochs:
            losses.append(total)
            with torch.no_grad():
                predicted.append((net(part.held_out) + closed).argmax(1))
    linears = [each for each in net if isinstance(each, torch.nn.Linear)]
    weights = [(each.weight.detach(), each.bias.detach()) for each in linears]
    return losses, predicted, weights


def fixed_layer_cv(slope, fold):
    """Mean slope where each fold's samples take the layer that is best on average over the others."""
    total = 0.0
    for i in range(len(slope)):
        others = [j for j in range(len(slope)) if fold[j] != fold[i]]
        means = [
            sum(slope[j][layer] for j in others) / len(others) for layer in range(len(slope[0]))
        ]
        total += slope[i][layers_by_slope(means)[0]] / len(slope)
    return total


# --- L2S networks ---------------------------------------------------------------------------------


def l2s_loss(said, wanted, *, loss, unit, epoch):
    """Mean over samples of one network's loss; `unit` is what 1 of a target is worth."""
    import torch

    total = 0.0
    for g, z in zip(said, wanted, strict=True):
        if loss == "paper":
            total = total + ((z - g) ** 2).sum()
        else:
            error = unit * (g - z)
            cosine = torch.nn.functional.cosine_similarity(g, z, dim=0)
            total = total + (error**2).mean() + error.abs().mean()
            total = total - 0.1 * min(1.0, epoch / 100) * cosine
    return total / len(said)


def l2s_alone(
    contexts,
    targets,
    held_contexts,
    held_targets,
    *,
    encoder,
    bias,
    decoder,
    unit,
    rate,
    loss,
    epochs,
    batch,
    check_every,
    seed,
):
    """One network with PyTorch's own layers, optimizer, schedule and gradients: best error, epoch, weights."""
    import torch

    inward = torch.nn.Linear(contexts.shape[1], len(bias), dtype=contexts.dtype)
    outward = torch.nn.Linear(len(bias), targets.shape[1], bias=False, dtype=contexts.dtype)
    with torch.no_grad():
        inward.weight.copy_(encoder)
        inward.bias.copy_(bias)
        outward.weight.copy_(decoder.T)
    net = torch.nn.Sequential(inward, torch.nn.Tanh(), outward)
    optimizer = torch.optim.Adam(net.parameters(), lr=rate)
    n = len(contexts)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs * -(-n // batch))
    generator = torch.Generator().manual_seed(seed)
    best: tuple[float, int, list[torch.Tensor]] = (float("inf"), 0, [])
    for epoch in range(1, epochs + 1):
        for rows in torch.randperm(n, generator=generator).split(batch):
            optimizer.zero_grad()
            value = l2s_loss(net(contexts[rows]), targets[rows], loss=loss, unit=unit, epoch=epoch)
            value.backward()
            optimizer.step()
            schedule.step()
        if epoch % check_every == 0 or epoch == epochs:
            with torch.no_grad():
                error = ((net(held_contexts) - held_targets) ** 2).sum(1).mean().item()
            if error < best[0]:
                best = (error, epoch, [p.detach().clone() for p in net.parameters()])
    return best


def principal_basis(rows, *, limit):
    """Right singular vectors with the largest singular values, each with its largest entry positive."""
    _, sizes, basis = np.linalg.svd(rows, full_matrices=False)
    basis = basis[sizes > 1e-6 * sizes[0]][:limit]
    for vector in basis:
        if vector[np.argmax(np.abs(vector))] < 0:
            vector *= -1
    return basis


def l2s_network(z, c, *, train, held, layer, context_layer, count, rate, settings):
    """One network of one steered and one context layer: its error in the residual stream, and a function."""
    import torch

    hidden = settings.hidden
    mean = c[train].mean(0)
    inward = principal_basis(c[train] - mean, limit=count)
    outward = np.eye(z.shape[1])
    if settings.loss == "paper":
        outward = principal_basis(z[train], limit=count)
    inputs, wanted = (c - mean) @ inward.T, z @ outward.T
    input_scale = np.sqrt((inputs[train] ** 2).sum(1).mean() / len(inward))
    unit = np.sqrt((wanted[train] ** 2).sum(1).mean() / hidden)
    first = np.zeros((hidden, len(outward)))
    found = principal_basis(wanted[train] - wanted[train].mean(0), limit=hidden)
    first[: len(found)] = found
    seed = np.random.SeedSequence((settings.seed, layer, context_layer)).generate_state(1)[0]
    generator = torch.Generator().manual_seed(int(seed))
    bound = len(inward) ** -0.5
    drawn = torch.empty(hidden, len(inward) + 1).uniform_(-bound, bound, generator=generator)

    def tensor(values):
        return torch.tensor(values, dtype=torch.float64)

    _, epoch, weights = l2s_alone(
        tensor(inputs[train] / input_scale),
        tensor(wanted[train] / unit),
        tensor(inputs[held] / input_scale),
        tensor(wanted[held] / unit),
        encoder=drawn[:, :-1],
        bias=drawn[:, -1],
        decoder=tensor(first),
        unit=unit,
        rate=rate,
        loss=settings.loss,
        epochs=settings.epochs,
        batch=settings.batch,
        check_every=settings.check_every,
        seed=settings.seed,
    )
    w1, b1, w2 = (w.numpy() for w in weights)

    def predict(context):
        h = np.tanh(w1 @ (inward @ (context - mean) / input_scale) + b1)
        return outward.T @ (w2 @ h) * unit

    error = sum(((z[i] - predict(c[i])) ** 2).sum() for i in held) / len(held)
    return error, epoch, predict
