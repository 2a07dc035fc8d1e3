"""Letters, groups, splits and leaks of rows, pair by pair."""


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
