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
