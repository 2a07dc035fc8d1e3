"""Moments, cosine and ranks, one number at a time in Python's floats."""

import numpy as np


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


def ranks(values):
    """Rank of each value from 1; equal values share the mean of their ranks."""
    out = []
    for v in values:
        below = sum(w < v for w in values)
        equal = sum(w == v for w in values)
        out.append(below + (equal + 1) / 2)
    return out


def store_moments(resid, labels, n_classes, *, group_rows):
    """The same of a store: each group's own, merged in order, number by number."""
    n, n_layers, d_model = resid.shape
    count = np.zeros(n_classes, np.int64)
    mean, scatter = (np.zeros((n_classes, n_layers, d_model)) for _ in range(2))
    for start in range(0, n, group_rows):
        rows = slice(start, start + group_rows)
        more, average, spread = class_moments(resid[rows], labels[rows], n_classes)
        for k in range(n_classes):
            both = count[k] + more[k]
            if not more[k]:
                continue
            for layer in range(n_layers):
                for j in range(d_model):
                    gap = average[k, layer, j] - mean[k, layer, j]
                    mean[k, layer, j] += gap * more[k] / both
                    scatter[k, layer, j] += spread[k, layer, j] + gap**2 * count[k] * more[k] / both
            count[k] = both
    return count, mean, scatter
