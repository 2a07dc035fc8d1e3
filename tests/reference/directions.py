"""Choosing a layer, a class or a token by its direction or attention, value by value."""

import numpy as np

from tests.reference.stats import cosine


def common_direction(directions):
    """Layer whose direction has the largest mean cosine with all (the first), and those means."""
    means = [sum(cosine(a, b) for b in directions) / len(directions) for a in directions]
    return means.index(max(means)), means


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


def token_choice(masses, scan):
    """For each layer the position with the largest head mean in any scanned row, that mass, and the
    mean over scanned rows; then layers by that mean."""
    n_layers, n_heads = masses[0].shape[1:]
    places, peaks, means = [], [], []
    for layer in range(n_layers):
        best, place = 0.0, len(masses) - 1
        for k, mass in enumerate(masses):
            for i in scan:
                value = sum(float(x) for x in mass[i, layer]) / n_heads
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


def plane(positive, negative, normalize):
    """Selective Steering's plane and signs, place by place.

    `positive` and `negative` are `[sample, place, d]`, the values of either class at every norm
    output. Gives b1, b2, the place of b1, mean cosines, and which places are zero, and the class
    means on b1 `[2][place]`. A candidate is zero where both classes have one mean.
    """
    classes = [np.asarray(values, np.float64) for values in (positive, negative)]
    n_places = classes[0].shape[1]
    candidates: dict[int, np.ndarray] = {}
    zero = []
    for k in range(n_places):
        means = [sum(row[k] for row in values) / len(values) for values in classes]
        difference = means[0] - means[1]
        largest = max(float(np.sqrt((mean * mean).sum())) for mean in means)
        size = float(np.sqrt((difference * difference).sum()))
        zero.append(size <= 1e-6 * largest)
        if not zero[k]:
            candidates[k] = difference / size
    real = list(candidates)
    cosines = [0.0] * n_places
    for k in real:
        cosines[k] = sum(cosine(candidates[k], candidates[j]) for j in real) / len(real)
    best = max(real, key=lambda k: cosines[k])
    b1 = candidates[best]
    average = sum(candidates[k] for k in real) / len(real)
    spread = np.zeros((len(b1), len(b1)))
    for k in real:
        spread += np.outer(candidates[k] - average, candidates[k] - average)
    _, vectors = np.linalg.eigh(spread)
    b2 = vectors[:, -1] - (vectors[:, -1] * b1).sum() * b1
    b2 = b2 / np.sqrt((b2 * b2).sum())
    if sum(float((candidates[k] * b2).sum()) for k in real) < 0:
        b2 = -b2
    projected = [[0.0] * n_places for _ in classes]
    for side, values in enumerate(classes):
        for k in range(n_places):
            for row in values:
                size = float(np.sqrt((row[k] * row[k]).sum())) if normalize else 1.0
                projected[side][k] += float((row[k] * b1).sum()) / (size or 1.0) / len(values)
    return b1, b2, best, cosines, zero, projected
